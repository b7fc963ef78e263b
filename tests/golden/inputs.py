"""What the golden values are made from, on both sides: seeded weights and images. NumPy only.

`RandomState` and not `Generator`, because NumPy promises never to change its streams.
"""

import zlib

import numpy as np

STEPS, BATCH, SIZE, CLASSES = 20, 8, 64, 10
LEARNING_RATE, DROP_AT, FACTOR, MOMENTUM, WEIGHT_DECAY = 2.0**-8, 10, 0.25, 0.9, 2.0**-10
MEAN = np.array([120.0, 118.0, 104.0])
STD = np.array([64.0, 60.0, 56.0])


# What parity.npz holds: a name for the case, the network, and its settings (`ModelConfig`).
NETWORKS: dict[str, tuple[str, dict]] = {
    "resnet18_3x3": ("resnet18", {}),
    "resnet34_3x3": ("resnet34", {}),
    **{
        f"resnet{depth}_{placement}": (f"resnet{depth}", {"stride_placement": placement})
        for depth in (50, 101, 152)
        for placement in ("1x1", "3x3")
    },
    "resnet18_A": ("resnet18", {"shortcut": "A"}),
    "resnet18_C": ("resnet18", {"shortcut": "C"}),
    "plain18": ("plain18", {}),
    "plain34": ("plain34", {}),
    "cifar_resnet20_both": ("cifar_resnet20", {"zero_channels": "both"}),
    "cifar_resnet56_end": ("cifar_resnet56", {"zero_channels": "end"}),
    "cifar_resnet110_end": ("cifar_resnet110", {"zero_channels": "end"}),
    "cifar_plain20": ("cifar_plain20", {}),
}


def size_of(key: str) -> int:
    """Height and width of the images of a case."""
    return 32 if key.startswith("cifar") or key == "published" else SIZE


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float64 starting value in torchvision's name and layout: random scales, biases and statistics too."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return draw * np.sqrt(2.0 / np.prod(shape[1:]))
    if name.endswith("running_var"):
        return 1.0 + 0.5 * np.tanh(draw)
    if name.endswith("weight"):
        return 1.0 + 0.3 * draw
    return 0.3 * draw


def batch(step: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images `[BATCH, size, size, 3]` and int32 labels of one step."""
    rng = np.random.RandomState(1000 + step)
    return rng.randint(0, 256, (BATCH, size, size, 3)).astype(np.uint8), rng.randint(0, CLASSES, BATCH).astype(np.int32)


def projection(name: str, value: np.ndarray) -> list[float]:
    """Two numbers that stand for a tensor: its product with a seeded random one, and its norm."""
    other = np.random.RandomState(zlib.crc32(name.encode()) ^ 1).standard_normal(value.shape)
    return [float((value * other).sum()), float(np.linalg.norm(value))]


def photo(height: int, width: int) -> np.ndarray:
    """Something smooth with edges, uint8 `[height, width, 3]`, whole-number arithmetic only."""
    noise = np.random.RandomState(height * 1000 + width).randint(0, 256, (height + 8, width + 8, 3)).astype(np.int64)
    total = np.pad(noise, ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)
    smooth = total[8:, 8:] - total[:-8, 8:] - total[8:, :-8] + total[:-8, :-8]
    smooth = smooth[:height, :width] // 64 * 6 - 640 + 200 * (np.arange(width) > width // 2)[None, :, None]
    return np.clip(smooth, 0, 255).astype(np.uint8)
