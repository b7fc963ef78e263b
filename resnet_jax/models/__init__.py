"""The paper's networks: `layers` -> `blocks` -> `resnet` -> `zoo`."""
