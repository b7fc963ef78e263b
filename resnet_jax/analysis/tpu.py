"""What a config needs on TPUs that are not here: compiles its training step with their own compiler, and prints the cost.

    python -m resnet_jax.analysis.tpu --config=configs/resnet50.py --topology=v5e:2x4

It needs `pip install libtpu` (or `make setup EXTRA=tpu`), which brings the compiler, and no TPU; no data is read and nothing
is run: with `data.placement=device` the data set comes on top. Compiling takes minutes. A step that does not fit into the
memory of a TPU is an error, and the line says what it would need.
"""

import collections
import importlib.util
import os
import re
import time

import jax
from absl import flags
from jax.experimental import topologies

from resnet_jax import flags as command_line
from resnet_jax import parallel, validation
from resnet_jax.analysis.communication import collectives
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError
from resnet_jax.models import formulation
from resnet_jax.training import experiment
from resnet_jax.training.compiled import compile_step
from resnet_jax.training.cost import step_cost

# What libtpu would otherwise ask the machine for, and complain about where there is no TPU.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def tpus(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, to compile for.

    Args:
      topology: generation and chips, such as 'v5e:2x4', 'v6e:4x4' or 'v5p:2x2x2'.

    Raises:
      UserError: libtpu is missing, or does not know such a slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu, the TPU's compiler, is not installed: pip install libtpu")
    os.environ.update(QUIET)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # of several kinds
        if "lockfile" in str(error):
            raise UserError(
                "another program on this machine uses libtpu, which serves one at a time; wait for its end"
            ) from error
        raise UserError(f"--topology={topology}: {_line(error)}; give one such as v5e:2x4, v6e:4x4 or v5p:2x2x2") from error


def compile_for(config: TrainConfig, topology: str) -> str:
    """Compiles the training step of a config, whose images count as RGB, for a TPU slice.

    Returns:
      What the step costs and exchanges, and how long compiling took, in lines.

    Raises:
      UserError: no such slice, it cannot share the batch, or a step needs more memory than its TPUs have.
    """
    if config.devices is not None:
        raise UserError(f"devices={config.devices}: here --topology says how many; leave it None")
    mesh = parallel.mesh_of(tpus(topology))
    validation.check_devices(config, mesh.size)
    run = experiment.build(config, config.model.num_classes or 1000, channels=3, mesh=mesh)
    began = time.monotonic()
    try:
        with formulation.compiling_for("tpu"):
            step = compile_step(run)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(
                f"batch_size={config.batch_size} does not fit into {topology}: {_line(error)}; try a smaller one, "
                'model.dtype=bfloat16 or model.remat="(1,2)"'
            ) from error
        raise
    found = collectives(step.as_text())
    kinds = ", ".join(f"{count} {kind}" for kind, count in collections.Counter(each.kind for each in found).items())
    return (
        f"{config.model.name}, {config.batch_size} images on {mesh.size} x {mesh.devices[0].device_kind} ({topology}), "
        f"{config.model.dtype}\n{step_cost(run, step)}\n"
        f"exchanged in a step: {kinds or 'nothing'}, {sum(each.bytes for each in found) / 1e6:.2f} MB per device\n"
        f"compiled in {time.monotonic() - began:.0f} s; nothing was run"
    )


def _line(error: Exception) -> str:
    """The first sentence of an error of XLA's, without its place in the source."""
    return re.split(r"\.\s|\n", str(error))[0].strip()


TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "The TPU slice: generation and chips.")


def main(config: TrainConfig) -> None:
    """Prints `compile_for` of the flags."""
    jax.config.update("jax_platforms", "cpu")
    print(compile_for(config, TOPOLOGY.value))


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_file, needs_data=False)
