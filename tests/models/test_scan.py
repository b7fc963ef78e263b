"""Blocks in a loop, and blocks computed twice, are the same network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.models import resnet
from resnet_jax.models.blocks import stack_blocks, unstack_blocks
from resnet_jax.training.loop import train
from tests import helpers


def compute(model, variables, images):
    """Loss, gradients and updated statistics."""

    def loss_of(params):
        given = {**variables, "params": params}
        logits, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean(), updated["batch_stats"]

    return jax.jit(jax.value_and_grad(loss_of, has_aux=True))(variables["params"])


@pytest.mark.parametrize(
    ("name", "shortcut", "remat"),
    [
        ("cifar_resnet20", "A", ()),
        pytest.param("cifar_resnet20", "C", (1, 3), marks=pytest.mark.slow),
        ("cifar_resnet8", "A", ()),
        pytest.param("cifar_plain14", None, (2,), marks=pytest.mark.slow),
        pytest.param("resnet50", "B", (), marks=pytest.mark.slow),
    ],
)
def test_same_function(x64, name, shortcut, remat):
    model = resnet.build(ModelConfig(name=name, shortcut=shortcut), BatchNormConfig(group_size=2), 10).clone(
        dtype=jnp.float64
    )
    shape = (32, 32, 3) if name.startswith("cifar") else (64, 64, 3)
    variables = helpers.random_like(resnet.variable_shapes(model, shape))
    images = np.random.RandomState(0).standard_normal((4, *shape))
    (loss, stats), gradients = compute(model, variables, images)

    looped = model.clone(scan_blocks=True, remat=remat)
    (loss2, stats2), gradients2 = compute(looped, stack_blocks(variables), images)
    assert loss2 == pytest.approx(float(loss), rel=1e-12)
    both = zip(
        helpers.flat([stats, gradients]).items(), helpers.flat(unstack_blocks([stats2, gradients2])).items(), strict=True
    )
    for (name, want), (name2, got) in both:
        assert name == name2
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10 * np.abs(want).max(), err_msg=name)

    features = jax.jit(lambda model, v: model.apply(v, images, train=False, method="features"), static_argnums=0)
    for want, got in zip(
        *(f.values() for f in (features(model, variables), features(looped, stack_blocks(variables)))), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10 * np.abs(want).max())


def test_the_loop_is_compiled_once():
    """The program's length does not grow with the depth."""

    def length(name, scan):
        model = resnet.build(ModelConfig(name=name, scan_blocks=scan), BatchNormConfig(), 10)
        variables = resnet.variable_shapes(model, (32, 32, 3))
        variables = jax.eval_shape(stack_blocks, variables) if scan else variables
        apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
        return len(apply.lower(variables, jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)).as_text().splitlines())

    assert length("cifar_resnet56", True) == length("cifar_resnet20", True)
    assert length("cifar_resnet56", False) > 2 * length("cifar_resnet20", False)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_stacking_is_undone_bit_for_bit(kind):
    model = resnet.build(ModelConfig(name="cifar_resnet20"), BatchNormConfig(), 10)
    variables = jax.tree.map(kind, resnet.init_variables(model, (32, 32, 3), seed=1))
    stacked = stack_blocks((variables, 3))
    assert stacked[0]["params"]["stage2"]["blocks"]["conv1"]["kernel"].shape == (2, 3, 3, 32, 32)
    helpers.assert_same_bits(unstack_blocks(stacked)[0], variables)


def test_a_run_goes_on_in_the_other_form(tmp_path):
    """Two steps in each form end where four in one do; the checkpoints are of the same network."""

    def run(folder, steps, scan):
        config = helpers.digits_config(
            steps=steps, model__name="cifar_resnet14", model__scan_blocks=scan, checkpoint__every=2
        )
        return train(helpers.validated(config), tmp_path / folder)

    run("both", 2, True)
    both, whole = run("both", 4, False), run("whole", 4, False)
    assert both["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert run("loop", 4, True)["loss"] == pytest.approx(whole["loss"], rel=1e-4)
