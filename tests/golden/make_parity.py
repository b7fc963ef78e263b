"""Writes parity.npz: what torchvision's own networks compute in float64, from seeded weights and one seeded batch.

    python -m tests.golden.make_parity        (needs torch and torchvision; made with 2.14.1 and 0.29.1)

For each network and stride placement: every stage's output, the logits and the loss in training mode, all gradients, all
updated running statistics, and the logits in testing mode; each tensor as its projection on a seeded random one and its
norm (`inputs.projection`). The strides of torchvision's bottlenecks are swapped for the paper's placement.
"""

import pathlib

import numpy as np
import torch
import torchvision

from tests.golden import inputs

NETWORKS = {
    f"resnet{depth}_{placement}": (depth, placement)
    for depth, placements in ((18, ["3x3"]), (34, ["3x3"]), *((d, ["1x1", "3x3"]) for d in (50, 101, 152)))
    for placement in placements
}


def build(depth: int, placement: str) -> torch.nn.Module:
    model = getattr(torchvision.models, f"resnet{depth}")(num_classes=inputs.CLASSES)
    if placement == "1x1":
        for module in model.modules():
            if isinstance(module, torchvision.models.resnet.Bottleneck):
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    state = {
        name: value if name.endswith("num_batches_tracked") else torch.from_numpy(inputs.tensor(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def compute(model: torch.nn.Module) -> dict[str, np.ndarray]:
    images, labels = inputs.batch(0)
    x = torch.from_numpy((images.astype("float64") - inputs.MEAN) / inputs.STD).permute(0, 3, 1, 2)
    values: dict[str, np.ndarray] = {"eval/logits": model.eval()(x).detach().numpy()}
    for index in range(1, 5):
        stage = getattr(model, f"layer{index}")

        def keep(_module, _args, output, name=f"train/stage{index}"):
            values[name] = output.detach().permute(0, 2, 3, 1).numpy()

        stage.register_forward_hook(keep)
    logits = model.train()(x)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
    loss.backward()
    values |= {"train/logits": logits.detach().numpy(), "train/loss": np.array(loss.item())}
    values |= {f"gradient/{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
    values |= {f"updated/{name}": value.numpy() for name, value in model.named_buffers() if "running" in name}
    return values


def main() -> None:
    torch.set_default_dtype(torch.float64)
    arrays = {}
    for key, (depth, placement) in NETWORKS.items():
        values = compute(build(depth, placement))
        arrays[key] = np.array([inputs.projection(name, values[name]) for name in sorted(values)])
        print(key, len(values), values["train/loss"], np.abs(values["train/logits"]).max())
    np.savez_compressed(pathlib.Path(__file__).with_name("parity.npz"), **arrays)


if __name__ == "__main__":
    main()
