"""Writes augment.npz: what torchvision's augmentation and PyTorch's losses give.

    python -m tests.golden.make_augment        (needs torch and torchvision; made with 2.14.1, 0.29.1 and Pillow 13.0.0)

Every operation of RandAugment and TrivialAugment on a small image, and its magnitudes at all levels; quantiles of the boxes
that RandomResizedCrop and RandomErasing draw; cross-entropy with smoothed and with soft targets.
"""

import pathlib

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, autoaugment

from tests.golden import inputs

HEIGHT, WIDTH, LEVELS = 16, 20, {False: 9, True: 20}  # of RandAugment, of TrivialAugment
QUANTILES = np.linspace(0.02, 0.98, 25)
DRAWS = 40_000


def operations() -> dict[str, np.ndarray]:
    image, arrays = Image.fromarray(inputs.photo(HEIGHT, WIDTH)), {}
    spaces = {
        False: autoaugment.RandAugment()._augmentation_space(31, (HEIGHT, WIDTH)),
        True: autoaugment.TrivialAugmentWide()._augmentation_space(31),
    }
    for wide, space in spaces.items():
        for name, (magnitudes, signed) in space.items():
            if magnitudes.ndim:
                arrays[f"magnitude/{name}/{wide}"] = magnitudes.double().numpy()
            for sign in (1, -1) if signed else (1,):
                value = float(magnitudes[LEVELS[wide]]) if magnitudes.ndim else 0.0
                result = autoaugment._apply_op(image, name, sign * value, InterpolationMode.BILINEAR, None)
                arrays[f"operation/{name}/{wide}/{sign}"] = np.asarray(result)
    return arrays


def boxes() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    arrays = {}
    draws = {
        "crop": lambda: transforms.RandomResizedCrop.get_params(torch.empty(3, 375, 500), [0.08, 1.0], [3 / 4, 4 / 3]),
        "erase": lambda: transforms.RandomErasing.get_params(torch.empty(3, 375, 500), (0.02, 0.33), (0.3, 3.3), [0.0])[:4],
    }
    for name, draw in draws.items():
        top, left, height, width = np.array([draw() for _ in range(DRAWS)], float).T
        values = (height * width, width / height, top, left)
        arrays[f"box/{name}"] = np.quantile(values, QUANTILES, axis=1)
    for height, width in ((100, 1000), (1000, 100), (2, 300)):
        box = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
        arrays[f"fallback/{height}x{width}"] = np.array(box)
    return arrays


def losses() -> dict[str, np.ndarray]:
    random = np.random.RandomState(5)
    logits, other = torch.from_numpy(3 * random.standard_normal((6, 7))), torch.from_numpy(random.randint(0, 7, 6))
    labels = torch.from_numpy(random.randint(0, 7, 6))
    cross_entropy, one_hot = torch.nn.functional.cross_entropy, torch.nn.functional.one_hot
    soft = 0.3 * one_hot(labels, 7).double() + 0.7 * one_hot(other, 7).double()
    return {
        "loss/logits": logits.numpy(),
        "loss/labels": labels.numpy(),
        "loss/other": other.numpy(),
        "loss/smoothed": cross_entropy(logits, labels, label_smoothing=0.1).numpy(),
        "loss/soft": cross_entropy(logits, soft, label_smoothing=0.1).numpy(),
    }


def main() -> None:
    np.savez_compressed(pathlib.Path(__file__).with_name("augment.npz"), **operations(), **boxes(), **losses())


if __name__ == "__main__":
    main()
