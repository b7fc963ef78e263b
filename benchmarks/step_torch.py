"""PyTorch's side of step.py: torchvision's network, or the CIFAR network of section 4.2, timed as our side is."""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class CifarBlock(nn.Module):
    """A basic block with shortcut A."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.stride, self.zeros = stride, cout - cin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.zeros:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.zeros))
        return functional.relu(x + y)


def cifar_resnet(depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    cin = 16
    for stage, cout in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            layers.append(CifarBlock(cin, cout, 2 if stage and not block else 1))
            cin = cout
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main(job: dict) -> None:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if job["network"].startswith("cifar_resnet"):
        model, classes = cifar_resnet(int(job["network"].removeprefix("cifar_resnet"))), 10
    else:
        import torchvision

        model, classes = getattr(torchvision.models, job["network"])(), 1000
    model = model.to(device, memory_format=torch.channels_last).train(job["mode"] == "train")
    forward = torch.compile(model) if cuda else model
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    x = torch.randn(job["batch"], 3, job["size"], job["size"], device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (job["batch"],), device=device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=job["dtype"] == "bfloat16")

    def step() -> None:
        if job["mode"] == "infer":
            with torch.inference_mode(), half:
                forward(x)
            return
        with half:
            loss = functional.cross_entropy(forward(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    run(2)
    name = torch.cuda.get_device_name() if cuda else "cpu"
    print(json.dumps({"version": f"torch {torch.__version__}", "device": name}), flush=True)
    for line in sys.stdin:
        seconds = run(int(line))
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0
        print(json.dumps({"seconds": seconds, "peak_memory_gib": round(peak, 2)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
