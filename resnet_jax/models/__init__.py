"""The paper's networks: `formulation` -> `layers` -> `blocks` -> `resnet`, and `zoo`, which has them as data."""
