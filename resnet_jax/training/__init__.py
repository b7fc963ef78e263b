"""Training: `schedules`, `optimizers` -> `state` -> `step` -> `checkpoints`, `logging` -> `loop`."""
