"""Trains a network: python train.py --config=configs/resnet50.py --config.data.root=PATH [--workdir=FOLDER]

Run it again with the same flags to go on after a stop. Any field of the config is a flag: --config.batch_size=128.
"""

from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; default: runs/<name of the config file>.")

DRY_RUN = flags.DEFINE_bool("dry-run", False, "Compile the step, print the memory and FLOPs that it needs, and end.")


def main(config: TrainConfig) -> None:
    if DRY_RUN.value:
        from resnet_jax.training.dry_run import dry_run

        dry_run(config)
        return
    from resnet_jax.training.loop import train  # after the flags that JAX reads when it starts are set

    train(config, WORKDIR.value or f"runs/{command_line.config_file_name()}", command_line.PEER_TIMEOUT.value)


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_file)
