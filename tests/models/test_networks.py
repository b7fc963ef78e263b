"""Every network of the paper: shapes, dtypes, parameter counts, names of the stages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.errors import UserError
from resnet_jax.models import resnet, zoo
from tests import helpers

# Trainable parameters with 1000 (ImageNet) or 10 classes (CIFAR), counted independently from Table 1 and section 4.2;
# those of option B equal torchvision's.
IMAGENET_PARAMETERS = {
    18: {"A": 11_515_688, "B": 11_689_512, "C": 12_043_816},
    34: {"A": 21_623_848, "B": 21_797_672, "C": 22_716_840},
    50: {"A": 22_780_456, "B": 25_557_032, "C": 40_128_552},
    101: {"A": 41_772_584, "B": 44_549_160, "C": 76_981_288},
    152: {"A": 57_416_232, "B": 60_192_808, "C": 107_335_720},
}
CIFAR_PARAMETERS = {
    20: {"A": 269_722, "B": 272_474},
    32: {"A": 464_154, "B": 466_906},
    44: {"A": 658_586, "B": 661_338},
    56: {"A": 853_018, "B": 855_770},
    110: {"A": 1_727_962, "B": 1_730_714},
    1202: {"A": 19_421_274, "B": 19_424_026},
}


def build(name, classes, shortcut=None, **settings):
    return resnet.build(ModelConfig(name=name, shortcut=shortcut, **settings), BatchNormConfig(), classes)


def count(model, size):
    return resnet.count_parameters(resnet.variable_shapes(model, (size, size, 3)))


@pytest.mark.parametrize("depth", IMAGENET_PARAMETERS)
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_imagenet_parameters(depth, shortcut):
    for stride_placement in ("1x1", "3x3"):
        model = build(f"resnet{depth}", 1000, shortcut, stride_placement=stride_placement)
        assert count(model, 224) == IMAGENET_PARAMETERS[depth][shortcut]
    final_width = 512 if depth < 50 else 2048
    assert count(build(f"resnet{depth}", 7, shortcut), 224) == IMAGENET_PARAMETERS[depth][shortcut] - 993 * (final_width + 1)


@pytest.mark.parametrize(
    ("depth", "shortcut"), [(d, s) for d in CIFAR_PARAMETERS for s in ("A", "B") if (d, s) != (1202, "B")]
)
def test_cifar_parameters(depth, shortcut):
    assert count(build(f"cifar_resnet{depth}", 10, shortcut), 32) == CIFAR_PARAMETERS[depth][shortcut]


@pytest.mark.parametrize("depth", [18, 34])
def test_plain_imagenet_networks_have_the_parameters_of_option_a(depth):
    assert count(build(f"plain{depth}", 1000), 224) == IMAGENET_PARAMETERS[depth]["A"]


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_plain_cifar_networks_have_the_parameters_of_option_a(depth):
    assert count(build(f"cifar_plain{depth}", 10), 32) == CIFAR_PARAMETERS[depth]["A"]


NAMES = [name for name in zoo.names() if "1202" not in name]
SHALLOW = {"resnet18", "resnet50", "plain18", "cifar_resnet20", "cifar_plain20"}
VERY_DEEP = {"resnet101", "resnet152", "cifar_resnet110", "cifar_plain110"}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(name, "float32", marks=[pytest.mark.slow] * (name in VERY_DEEP)) for name in NAMES]
    + [pytest.param(name, "bfloat16", marks=[pytest.mark.slow] * (name not in SHALLOW)) for name in NAMES],
)
def test_shapes_and_dtypes(name, dtype, strict_dtypes):
    cifar = name.startswith("cifar")
    size, classes = (32, 10) if cifar else (224, 1000)
    model = build(name, classes, dtype=dtype)
    variables = resnet.variable_shapes(model, (size, size, 3))
    chex.assert_trees_all_equal_dtypes(variables, jax.tree.map(lambda leaf: jnp.zeros((), jnp.float32), variables))
    x = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)

    def check(image):
        stages = model.apply(variables_, image, train=False, method="features")
        factor = 4 if zoo.architecture(name).block == "bottleneck" else 1
        first, widths = (32, (16, 32, 64)) if cifar else (56, (64, 128, 256, 512))
        for index, width in enumerate(widths):
            side = first // 2**index
            chex.assert_shape(stages[f"stage{index + 1}"], (4, side, side, width * factor))
            chex.assert_type(stages[f"stage{index + 1}"], jnp.dtype(dtype))
        logits, updated = model.apply(variables_, image, train=True, mutable=["batch_stats"])
        chex.assert_shape(logits, (4, classes))
        chex.assert_type(logits, jnp.float32)
        chex.assert_trees_all_equal_shapes_and_dtypes(updated["batch_stats"], variables_["batch_stats"])
        return logits

    def run(given, image):
        nonlocal variables_
        variables_ = given
        return check(image)

    variables_ = None
    jax.eval_shape(run, variables, x)


def test_stage_runs_by_itself_with_the_same_parameters():
    model = build("cifar_resnet8", 10)
    variables = helpers.random_like(resnet.variable_shapes(model, (32, 32, 3)), np.float32)
    x = np.random.RandomState(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    stages = model.apply(variables, x, train=False, method="features")
    again = model.apply(variables, stages["stage2"], method=lambda net, y: net.stage3(y, train=False))
    np.testing.assert_array_equal(again, stages["stage3"])
    logits = model.apply(variables, stages["stage3"], method=lambda net, y: net.head(y))
    np.testing.assert_array_equal(logits, model.apply(variables, x, train=False))


def test_train_is_a_required_keyword():
    model = build("cifar_resnet8", 10)
    variables = helpers.random_like(resnet.variable_shapes(model, (32, 32, 3)), np.float32)
    with pytest.raises(TypeError, match="train"):
        model.apply(variables, np.zeros((1, 32, 32, 3), np.float32))


def test_stride_placement_changes_the_function_and_not_the_parameters():
    x = np.random.RandomState(0).standard_normal((1, 128, 128, 3)).astype(np.float32)
    outputs = []
    for placement in ("1x1", "3x3"):
        model = build("resnet50", 10, stride_placement=placement)
        shapes = resnet.variable_shapes(model, (128, 128, 3))
        jaxpr = str(jax.make_jaxpr(lambda v, model=model: model.apply(v, x, train=False))(shapes))
        outputs.append(jaxpr)
    # Three stages halve the resolution: by a strided slice before the 1x1 product, or by a strided 3x3 convolution.
    strided_3x3 = [text.count("window_strides=(2, 2)") for text in outputs]
    assert strided_3x3 == [1, 4]  # the stem, and with '3x3' one per stage


def test_unknown_networks_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        zoo.architecture("resnet51")
    with pytest.raises(UserError, match="not known"):
        zoo.architecture("cifar_resnet21")
    assert zoo.architecture("cifar_resnet8").stage_sizes == (1, 1, 1)


class TestInitialValues:
    def test_same_structure_and_distribution_as_linen(self):
        model = build("cifar_resnet8", 10, shortcut="B", zero_init_last=True)
        ours = resnet.init_variables(model, (8, 8, 3), seed=0)
        linen = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
        chex.assert_trees_all_equal_shapes_and_dtypes(ours, linen)
        ours, linen = helpers.flat(ours), helpers.flat(linen)
        for name, value in linen.items():
            if name.endswith("kernel"):
                assert abs(ours[name].std() / value.std() - 1) < 4 / np.sqrt(value.size), name
            else:
                np.testing.assert_array_equal(ours[name], value, err_msg=name)

    @pytest.mark.parametrize("fan", ["fan_in", "fan_out"])
    def test_he_normal_is_not_truncated(self, fan):
        model = build("cifar_resnet20", 10, init_fan=fan)
        kernel = resnet.init_variables(model, (32, 32, 3), seed=1)["params"]["stage3"]["block1"]["conv1"]["kernel"]
        std = np.sqrt(2 / (9 * (32 if fan == "fan_in" else 64)))
        assert kernel.shape == (3, 3, 32, 64)
        assert abs(kernel.std() / std - 1) < 0.02
        assert np.abs(kernel).max() > 3 * std  # a truncated normal ends at 2

    def test_depends_on_the_seed_alone(self):
        one, same, other = (
            resnet.init_variables(build("cifar_resnet8", 10), (8, 8, 3), seed=seed)["params"] for seed in (3, 3, 4)
        )
        helpers.assert_same_bits(one, same)
        assert not np.array_equal(one["stem"]["conv"]["kernel"], other["stem"]["conv"]["kernel"])
