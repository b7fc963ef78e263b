"""Twenty training steps equal those of torchvision's ResNet-18 in float64, from the same weights and batches."""

import json

import jax.numpy as jnp
import numpy as np

from resnet_jax import parallel
from resnet_jax.config import BatchNormConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from resnet_jax.models import resnet
from resnet_jax.training.optimizers import make_optimizer
from resnet_jax.training.schedules import make_schedule
from resnet_jax.training.step import compile_train_step, make_step
from resnet_jax.weights.torchvision import from_torch_layout, to_torch_layout, torch_name
from tests import helpers
from tests.golden import inputs


def test_twenty_steps_equal_torchvision_in_float64(x64):
    golden = json.loads((helpers.ROOT / "tests/golden/resnet18_trajectory.json").read_text())
    # A basic block has one place for its stride; what must match torchvision is the padding of the max pooling.
    settings = ModelConfig(name="resnet18", max_pool="torch")
    model = resnet.build(settings, BatchNormConfig(), inputs.CLASSES).clone(dtype=jnp.float64)
    shapes = resnet.variable_shapes(model, (inputs.SIZE, inputs.SIZE, 3))

    names = {path: torch_name(path.split("/")[1:]) for path in helpers.flat(shapes)}
    assert sorted(names.values()) == sorted(golden["final"])

    def start(path, leaf):
        name = names["/".join(entry.key for entry in path)]
        torch_shape = to_torch_layout(np.empty(leaf.shape)).shape
        return from_torch_layout(inputs.tensor(name, torch_shape))

    import jax

    variables = jax.tree_util.tree_map_with_path(start, shapes)
    schedule = make_schedule(ScheduleConfig(boundaries=(inputs.DROP_AT,), factor=inputs.FACTOR), inputs.LEARNING_RATE)
    optimizer = make_optimizer(
        OptimizerConfig(name="sgd", momentum=inputs.MOMENTUM, weight_decay=inputs.WEIGHT_DECAY, decay_mask="all")
    )
    mesh = parallel.make_mesh(1)
    step_fn = compile_train_step(make_step(model, optimizer, schedule, 0), mesh)
    state = parallel.put_replicated(helpers.state_of(variables, optimizer, inputs.MEAN, inputs.STD), mesh)
    losses = []
    for step in range(inputs.STEPS):
        images, labels = inputs.batch(step)
        state, metrics = step_fn(state, parallel.put_batch({"image": images, "label": labels}, mesh, inputs.BATCH))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-9)
    for path, value in helpers.flat({"params": state.params, "batch_stats": state.batch_stats}).items():
        name = names[path]
        got = inputs.projection(name, to_torch_layout(value))
        # A projection is a sum of terms of either sign: its error is measured against the norm.
        np.testing.assert_allclose(got, golden["final"][name], rtol=0, atol=1e-8 * golden["final"][name][1], err_msg=name)
