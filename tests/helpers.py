"""Things that several tests make."""

import dataclasses
import pathlib
import socket
import zlib

import jax
import numpy as np

from resnet_jax import parallel, recipes, validation
from resnet_jax.config import TrainConfig
from resnet_jax.training import experiment, start
from resnet_jax.training.state import TrainState

ROOT = pathlib.Path(__file__).parent.parent
TIMES = ("images_per_second", "data_wait", "device_hours", "utilisation")  # in which rows of equal runs may differ


def digits_config(**fields) -> TrainConfig:
    """A tiny, mutable config on real digits: ResNet-8, four steps; fields as 'section__field=value'."""
    config = recipes.paper_cifar10("cifar_resnet8")
    values = {
        "steps": 4,
        "batch_size": 16,
        "data__source": "digits",
        "data__image_size": 8,
        "data__pad": 1,
        "evaluation__every": 2,
        "evaluation__batch_size": 128,
        "checkpoint__every": 1,
        "logging__every": 1,
        "logging__tensorboard": False,
        "logging__curves": False,
        "devices": 1,
    } | fields
    for name, value in values.items():
        *sections, field = name.split("__")
        target = config
        for section in sections:
            target = getattr(target, section)
        setattr(target, field, value)
    return config


def validated(config: TrainConfig) -> TrainConfig:
    return validation.validate(config)


def random_like(shapes, dtype=np.float64):
    """Random variables for a tree of shapes: He-normal kernels, and scales, biases and statistics that are not 1 or 0."""

    def draw(path, leaf):
        names = [entry.key for entry in path]
        rng = np.random.RandomState(zlib.crc32("/".join(names).encode()))
        value = rng.standard_normal(leaf.shape)
        if names[-1] == "kernel":
            return (value * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(dtype)
        if names[-1] == "var":
            return (1 + 0.5 * np.tanh(value)).astype(dtype)
        return (0.3 * value + (names[-1] == "scale")).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def state_of(variables, optimizer, mean, std, dtype=np.float64) -> TrainState:
    opt_state = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, variables["params"])
    )
    pixels = {"mean": np.asarray(mean, dtype).reshape(1, 1, -1), "std": np.asarray(std, dtype).reshape(1, 1, -1)}
    return TrainState(np.int32(0), variables["params"], variables["batch_stats"], opt_state, pixels)


def float64_run(config: TrainConfig) -> tuple:
    """The experiment of a config in float64, its fresh state and its two data sets; within `jax.enable_x64(True)`."""
    train_source, test_source = experiment.open_data(config, "train"), experiment.open_data(config, "val")
    run = experiment.build(config, len(train_source.classes), train_source.channels)
    run = dataclasses.replace(run, model=run.model.clone(dtype=np.float64))
    state = parallel.put_replicated(as_float64(start.first_state(run, train_source)), run.mesh)
    return run, state, train_source, test_source


def as_float64(tree):
    """Arrays, or their shapes, with float64 in place of float32."""

    def cast(leaf):
        if leaf.dtype != np.float32:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, np.float64, sharding=leaf.sharding)
        return np.asarray(leaf, np.float64)

    return jax.tree.map(cast, tree)


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def flat(tree) -> dict[str, np.ndarray]:
    """A tree as {'a/b/c': array}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def flat_shapes(tree) -> list[str]:
    """The names of a tree's leaves, as in `flat`; they need not be arrays."""
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def assert_same_bits(one, other) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not different, f"{len(different)} of {len(one)} arrays differ, first {different[0]}"
