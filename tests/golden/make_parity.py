"""Writes parity.npz: what PyTorch's networks compute in float64, from seeded weights and one seeded batch.

    python -m tests.golden.make_parity [WEIGHTS.th]      (needs torch and torchvision; made with 2.14.1 and 0.29.1)

For each network of `inputs.NETWORKS`: every stage's output, the logits and the loss in training mode, all gradients, all
updated running statistics, and the logits in testing mode; each tensor as its projection on a seeded random one and its
norm (`inputs.projection`).

ImageNet's networks are torchvision's own: their strides swapped for the paper's placement, their shortcuts taken out for
the plain ones and exchanged for options A and C. CIFAR's are `torch.nn.functional` calls on a state dict in the layout of
akamaster/pytorch_resnet_cifar10; WEIGHTS.th, that project's published ResNet-20, adds the case `published`.
"""

import pathlib
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.resnet import BasicBlock, Bottleneck

from tests.golden import inputs


class ZeroPadding(torch.nn.Module):
    """Option A: every other pixel where the resolution halves, zero channels before and after."""

    def __init__(self, stride: int, before: int, after: int):
        super().__init__()
        self.stride, self.zeros = stride, (0, 0, 0, 0, before, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.zeros)


def plain_forward(block: BasicBlock, x: torch.Tensor) -> torch.Tensor:
    x = block.relu(block.bn1(block.conv1(x)))
    return block.relu(block.bn2(block.conv2(x)))


def imagenet(name: str, stride_placement: str = "3x3", shortcut: str | None = None) -> torch.nn.Module:
    depth = name.removeprefix("resnet").removeprefix("plain")
    model = getattr(torchvision.models, f"resnet{depth}")(num_classes=inputs.CLASSES)
    for block in [module for module in model.modules() if isinstance(module, BasicBlock | Bottleneck)]:
        if stride_placement == "1x1":
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        if name.startswith("plain"):
            block.downsample, block.forward = None, types.MethodType(plain_forward, block)
        elif shortcut == "A" and block.downsample is not None:
            block.downsample = ZeroPadding(2, 0, block.conv1.in_channels)
        elif shortcut == "C" and block.downsample is None:
            width = block.conv1.in_channels
            conv = torch.nn.Conv2d(width, width, 1, bias=False)
            block.downsample = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(width))
    model.load_state_dict(seeded(model.state_dict()))
    for index in range(1, 5):
        stage = getattr(model, f"layer{index}")
        stage.register_forward_hook(lambda _, __, y, index=index: model.stages.update({f"stage{index}": y}))
    model.stages = {}
    return model


class Cifar(torch.nn.Module):
    """Section 4.2's network as function calls on a state dict."""

    def __init__(self, state: dict[str, torch.Tensor], shortcut: str | None, zero_channels: str):
        super().__init__()
        self.shortcut, self.zero_channels, self.stages = shortcut, zero_channels, {}
        self.state = {name: value.clone().requires_grad_("running" not in name) for name, value in state.items()}

    def named_parameters(self):
        return [(name, value) for name, value in self.state.items() if value.requires_grad]

    def named_buffers(self):
        return [(name, value) for name, value in self.state.items() if not value.requires_grad]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        tensors = (self.state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *tensors, training=self.training, momentum=0.1, eps=1e-5)

    def block(self, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        y = F.conv2d(x, self.state[f"{name}.conv1.weight"], stride=stride, padding=1)
        y = F.relu(self.norm(f"{name}.bn1", y))
        y = self.norm(f"{name}.bn2", F.conv2d(y, self.state[f"{name}.conv2.weight"], padding=1))
        if self.shortcut == "A":
            zeros = y.shape[1] - x.shape[1]
            before = zeros // 2 if self.zero_channels == "both" else 0
            y = y + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, zeros - before))
        return F.relu(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm("bn1", F.conv2d(x, self.state["conv1.weight"], padding=1)))
        blocks = len({name.split(".")[1] for name in self.state if name.startswith("layer1.")})
        for stage in (1, 2, 3):
            for index in range(blocks):
                x = self.block(f"layer{stage}.{index}", x, 2 if stage > 1 and index == 0 else 1)
            self.stages[f"stage{stage}"] = x
        return F.linear(x.mean((2, 3)), self.state["fc.weight"], self.state["fc.bias"])


def cifar(name: str, shortcut: str | None = "A", zero_channels: str = "end") -> torch.nn.Module:
    blocks = (int(name.removeprefix("cifar_resnet").removeprefix("cifar_plain")) - 2) // 6
    shapes = {"conv1.weight": (16, 3, 3, 3), **norm_shapes("bn1", 16), "fc.weight": (10, 64), "fc.bias": (10,)}
    width = 16
    for stage, out in enumerate((16, 32, 64), 1):
        for index in range(blocks):
            for number in (1, 2):
                shapes[f"layer{stage}.{index}.conv{number}.weight"] = (out, width, 3, 3)
                shapes |= norm_shapes(f"layer{stage}.{index}.bn{number}", out)
                width = out
    state = seeded({key: torch.empty(shape) for key, shape in shapes.items()})
    return Cifar(state, None if name.startswith("cifar_plain") else shortcut, zero_channels)


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def seeded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: value if name.endswith("num_batches_tracked") else torch.from_numpy(inputs.tensor(name, tuple(value.shape)))
        for name, value in state.items()
    }


def published(path: str) -> torch.nn.Module:
    state = torch.load(path, map_location="cpu")["state_dict"]
    names = {name: name.removeprefix("module.").replace("linear", "fc") for name in state}
    return Cifar({new: state[old].double() for old, new in names.items() if "tracked" not in old}, "A", "both")


def compute(model: torch.nn.Module, size: int) -> dict[str, np.ndarray]:
    images, labels = inputs.batch(0, size)
    x = torch.from_numpy((images.astype("float64") - inputs.MEAN) / inputs.STD).permute(0, 3, 1, 2)
    values: dict[str, np.ndarray] = {"eval/logits": model.eval()(x).detach().numpy()}
    logits = model.train()(x)
    loss = F.cross_entropy(logits, torch.from_numpy(labels).long())
    loss.backward()
    values |= {f"train/{name}": y.detach().permute(0, 2, 3, 1).numpy() for name, y in model.stages.items()}
    values |= {"train/logits": logits.detach().numpy(), "train/loss": np.array(loss.item())}
    values |= {f"gradient/{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
    values |= {f"updated/{name}": value.numpy() for name, value in model.named_buffers() if "running" in name}
    return values


def main() -> None:
    torch.set_default_dtype(torch.float64)
    path = pathlib.Path(__file__).with_name("parity.npz")
    with np.load(path) as file:
        arrays = dict(file)
    cases = {
        key: ((cifar if "cifar" in name else imagenet)(name, **fields)) for key, (name, fields) in inputs.NETWORKS.items()
    }
    if len(sys.argv) > 1:
        cases["published"] = published(sys.argv[1])
    for key, model in cases.items():
        values = compute(model, inputs.size_of(key))
        arrays[key] = np.array([inputs.projection(name, values[name]) for name in sorted(values)])
        smallest = min(np.linalg.norm(value) for name, value in values.items() if name.startswith("gradient"))
        print(key, len(values), values["train/loss"], np.abs(values["train/logits"]).max(), "smallest gradient", smallest)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
