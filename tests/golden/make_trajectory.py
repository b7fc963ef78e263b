"""Writes resnet18_trajectory.json: 20 training steps of torchvision's ResNet-18 in float64.

python -m tests.golden.make_trajectory        (needs torch and torchvision; made with 2.14.1 and 0.29.1)
"""

import json
import pathlib

import torch
import torchvision

from tests.golden import inputs


def main() -> None:
    torch.set_default_dtype(torch.float64)
    model = torchvision.models.resnet18(num_classes=inputs.CLASSES).train()
    state = {
        name: value if name.endswith("num_batches_tracked") else torch.from_numpy(inputs.tensor(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), inputs.LEARNING_RATE, inputs.MOMENTUM, weight_decay=inputs.WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [inputs.DROP_AT], inputs.FACTOR)
    losses = []
    for step in range(inputs.STEPS):
        images, labels = inputs.batch(step)
        x = torch.from_numpy((images.astype("float64") - inputs.MEAN) / inputs.STD).permute(0, 3, 1, 2)
        loss = torch.nn.functional.cross_entropy(model(x), torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    final = {
        name: inputs.projection(name, value.numpy())
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    made_with = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    path = pathlib.Path(__file__).with_name("resnet18_trajectory.json")
    path.write_text(json.dumps({"made_with": made_with, "losses": losses, "final": final}, indent=1) + "\n")
    print(path, losses)


if __name__ == "__main__":
    main()
