"""The authors' Caffe models: files written here byte by byte, read into our networks."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import validation
from resnet_jax.config import BatchNormConfig, DataConfig, ModelConfig, TrainConfig
from resnet_jax.data import normalize
from resnet_jax.data.sources import SyntheticSource
from resnet_jax.errors import UserError
from resnet_jax.models import resnet
from resnet_jax.weights import caffe, formats
from resnet_jax.weights.torchvision import torch_name
from tests import helpers


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, payload):
    """A length-delimited field, or a varint if the payload is a number."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    payload = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def blob(array, style="packed"):
    """A BlobProto; 'packed' as Caffe writes it today, 'legacy' with four sizes and one field per value, or 'double'."""
    array = np.asarray(array)
    if style == "legacy":
        sizes = (1,) * (4 - array.ndim) + array.shape
        values = b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in array.ravel())
        return b"".join(field(number, size) for number, size in enumerate(sizes, 1)) + values
    shape = field(7, field(1, b"".join(varint(size) for size in array.shape)))
    if style == "double":
        return shape + field(8, array.astype("<f8").tobytes())
    diff = field(6, np.ones(3, "<f4").tobytes())  # gradients, which nobody wants
    return field(5, array.astype("<f4").tobytes()) + diff + shape


def layer(name, *arrays, style="packed"):
    """A layer in a net's bytes, with fields around its weights that the reader must pass over."""
    if style == "legacy":  # V1LayerParameter: bottom 2, top 3, name 4, type 5, blobs 6
        body = field(2, "below") + field(4, name) + field(5, 4) + b"".join(field(6, blob(a, style)) for a in arrays)
        return field(2, body)
    body = field(1, name) + field(2, "Some") + field(3, "below") + b"".join(field(7, blob(a, style)) for a in arrays)
    return field(100, body + field(106, field(1, 64)))


def random(name, *shape):
    return helpers.random_like({"kernel" if len(shape) > 1 else name: jax.ShapeDtypeStruct(shape, np.float32)}, np.float32)[
        "kernel" if len(shape) > 1 else name
    ]


def block_names(depth):
    """The blocks' names in the authors' prototxt files, for stages 2 to 5."""
    if depth == 50:
        return ["2a 2b 2c", "3a 3b 3c 3d", "4a 4b 4c 4d 4e 4f", "5a 5b 5c"]
    third, fourth = (3, 22) if depth == 101 else (7, 35)
    stages = ["2a 2b 2c", "3a", "4a", "5a 5b 5c"]
    stages[1] += "".join(f" 3b{i}" for i in range(1, third + 1))
    stages[2] += "".join(f" 4b{i}" for i in range(1, fourth + 1))
    return stages


def layer_names(depth):
    names = ["conv1", "bn_conv1", "scale_conv1", "fc1000"]
    for stage in block_names(depth):
        for index, block in enumerate(stage.split()):
            for branch in ("1", "2a", "2b", "2c") if index == 0 else ("2a", "2b", "2c"):
                names += [f"{kind}{block}_branch{branch}" for kind in ("res", "bn", "scale")]
    return names


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_every_layer_has_its_place(depth):
    model = resnet.build(ModelConfig(name=f"resnet{depth}"), BatchNormConfig(), 1000)
    wanted = {torch_name(name.split("/")[1:]) for name in helpers.flat_shapes(resnet.variable_shapes(model, (64, 64, 3)))}
    leaves = {
        "conv": ["weight"],
        "fc": ["weight", "bias"],
        "bn": ["running_mean", "running_var"],
        "scale": ["weight", "bias"],
    }
    got = [f"{target}.{leaf}" for target, kind in map(caffe.torch_layer, layer_names(depth)) for leaf in leaves[kind]]
    assert sorted(got) == sorted(wanted)
    assert (
        caffe.torch_layer(f"res{block_names(depth)[2].split()[-1]}_branch2c")[0]
        == f"layer3.{len(block_names(depth)[2].split()) - 1}.conv3"
    )


@pytest.mark.parametrize("name", ["pool1", "res2a", "res6a_branch1", "res2a_branch3", "bn_conv2", ""])
def test_other_layers_have_none(name):
    assert caffe.torch_layer(name) is None


STEM = {
    "conv1": (random("w", 64, 3, 7, 7), random("b", 64)),
    "bn_conv1": (3 * random("m", 64), 3 * np.abs(random("v", 64)) + 1, np.array([2.5], np.float32)),
    "scale_conv1": (random("g", 64), random("h", 64)),
}


@pytest.mark.parametrize("style", ["packed", "legacy", "double"])
def test_tensors_of_the_stem(tmp_path, style):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(field(1, "ResNet") + b"".join(layer(name, *arrays, style=style) for name, arrays in STEM.items()))
    got = caffe.read_caffemodel(path)
    (kernel, bias), (mean, var, total), (gamma, beta) = STEM.values()
    want = {"conv1.bias": bias, "bn1.running_mean": mean / total, "bn1.running_var": var / total}
    want |= {"conv1.weight": kernel[:, [2, 1, 0]], "bn1.weight": gamma, "bn1.bias": beta}
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


def whole_model(path, skip=()):
    """A ResNet-50 with random weights, written as the authors' file."""
    layers = dict(STEM)
    width = 64
    for stage, blocks in enumerate(block_names(50)):
        middle = 64 * 2**stage
        for index, block in enumerate(blocks.split()):
            convs = {"2a": (middle, width, 1, 1), "2b": (middle, middle, 3, 3), "2c": (4 * middle, middle, 1, 1)}
            if index == 0:
                convs["1"] = (4 * middle, width, 1, 1)
            for branch, shape in convs.items():
                names = [f"{kind}{block}_branch{branch}" for kind in ("res", "bn", "scale")]
                values = [random(names[1] + leaf, shape[0]) for leaf in "mvgb"]
                layers[names[0]] = (random(names[0], *shape),)
                layers[names[1]] = (values[0], np.abs(values[1]) + 1, np.ones(1))
                layers[names[2]] = (1 + 0.1 * values[2], values[3])
            width = 4 * middle
    layers["fc1000"] = (random("fc", 1000, 2048), random("fcb", 1000))
    path.write_bytes(b"".join(layer(name, *arrays) for name, arrays in layers.items() if name not in skip))
    return layers


def test_a_whole_network_computes_what_the_file_says(tmp_path):
    """ResNet-50's stem in NumPy float64, from BGR pixels; the rest is covered by names, layouts and the parity tests."""
    layers = whole_model(tmp_path / "r50.caffemodel")
    model = resnet.build(ModelConfig(name="resnet50"), BatchNormConfig(), 1000)
    variables = formats.load(f"caffe:{tmp_path / 'r50.caffemodel'}", resnet.variable_shapes(model, (32, 32, 3)))

    rgb = np.random.RandomState(0).uniform(0, 255, (1, 16, 16, 3))
    bgr_mean = np.array([103.0, 116.0, 123.0])
    (kernel, bias), (mean, var, total), (gamma, beta) = (tuple(map(np.float64, arrays)) for arrays in STEM.values())
    padded = np.pad(rgb[0, :, :, ::-1] - bgr_mean, ((3, 3), (3, 3), (0, 0)))
    out = np.zeros((8, 8, 64))
    for i in range(8):
        for j in range(8):
            out[i, j] = np.einsum("hwc,ochw->o", padded[2 * i : 2 * i + 7, 2 * j : 2 * j + 7], kernel) + bias
    out = np.maximum((out - mean / total) / np.sqrt(var / total + 1e-5) * gamma + beta, 0)
    out = np.pad(out, ((0, 1), (0, 1), (0, 0)), constant_values=-np.inf)  # pooling rounds up
    want = [[out[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(4)] for i in range(4)]

    x = jnp.asarray(rgb - bgr_mean[::-1], jnp.float32)
    got = model.apply(variables, x, method=lambda net, x: net.stem(x, train=False))
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-3)
    kernel = variables["params"]["stage3"]["block6"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 2, 5, 7], layers["res4f_branch2b"][0][7, 5, 0, 2])
    np.testing.assert_array_equal(variables["params"]["head"]["dense"]["kernel"], layers["fc1000"][0].T)
    shortcut = variables["batch_stats"]["stage2"]["block1"]["shortcut"]["bn"]["mean"]
    np.testing.assert_array_equal(shortcut, layers["bn3a_branch1"][0])


def test_what_is_refused(tmp_path):
    path = tmp_path / "x.caffemodel"
    model = resnet.build(ModelConfig(name="resnet50"), BatchNormConfig(), 1000)
    shapes = resnet.variable_shapes(model, (32, 32, 3))

    def refused(content, match):
        path.write_bytes(content)
        with pytest.raises(UserError, match=match) as caught:
            formats.load(f"caffe:{path}", shapes)
        assert "\n" not in str(caught.value)

    whole_model(path, skip=["res4c_branch2b"])
    refused(path.read_bytes(), r"x.caffemodel: has no layer3.2.conv2.weight")
    refused(path.read_bytes()[:-1000], "x.caffemodel: not a Caffe file, or a truncated one")
    refused(layer("conv1", np.ones((64, 3, 7, 7)), np.ones(64)), r"x.caffemodel: has no bn1\.running_mean|has no ")
    refused(b"hello, I am a text file", "not a Caffe file|holds no weights")
    refused(b"", "holds no weights")
    refused(layer("ip1", np.ones((2, 3))), "layer 'ip1' with 1 arrays is none of the authors' ResNets'")
    refused(layer("conv1", np.ones((2, 3)), np.ones(2), np.ones(2)), "layer 'conv1' with 3 arrays")
    wrong = field(100, field(1, "conv1") + field(7, field(5, np.ones(4, "<f4").tobytes()) + field(7, field(1, varint(9)))))
    refused(wrong, r"conv1 holds 4 values for the shape \[9\]")


class TestMean:
    @pytest.fixture
    def bgr(self, tmp_path):
        """A mean image of 8x8, as planes in the order B, G, R, in a file."""
        planes = np.random.RandomState(1).uniform(90, 140, (3, 8, 8)).astype(np.float32)
        (tmp_path / "mean.binaryproto").write_bytes(blob(planes, "legacy"))
        return planes

    def statistics(self, path, size):
        data = DataConfig(source="synthetic", mean=str(path), image_size=size)
        got = normalize.statistics(data, SyntheticSource(8, 2, 8, 0))
        assert {name: value.shape for name, value in got.items()} == {
            name: value.shape for name, value in normalize.statistics_shapes(data, 3).items()
        }
        return got["mean"]

    def test_per_pixel_where_the_size_is_the_same(self, tmp_path, bgr):
        np.testing.assert_array_equal(self.statistics(tmp_path / "mean.binaryproto", 8), bgr[::-1].transpose(1, 2, 0))

    def test_else_its_average(self, tmp_path, bgr):
        got = self.statistics(tmp_path / "mean.binaryproto", 12)
        np.testing.assert_allclose(got, np.broadcast_to(bgr[::-1].mean((1, 2)), (12, 12, 3)), rtol=1e-6)

    def test_as_npy(self, tmp_path):
        mean = np.random.RandomState(2).uniform(90, 140, (8, 8, 3))
        np.save(tmp_path / "mean.npy", mean)
        np.testing.assert_array_equal(self.statistics(tmp_path / "mean.npy", 8), mean.astype(np.float32))

    def test_what_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"data\.mean=nowhere\.npy: no such file"):
            self.statistics("nowhere.npy", 8)
        np.save(tmp_path / "grey.npy", np.ones((8, 8)))
        with pytest.raises(UserError, match=r"grey.npy: expected a floating-point mean image .* found float64 \[8, 8\]"):
            self.statistics(tmp_path / "grey.npy", 8)
        (tmp_path / "text.binaryproto").write_text("hello")
        with pytest.raises(UserError, match=r"text\.binaryproto"):
            self.statistics(tmp_path / "text.binaryproto", 8)


def test_settings_that_the_weights_need():
    def check(**data):
        config = TrainConfig(init="caffe:x.caffemodel")
        config.data = DataConfig(source="synthetic", **data)
        validation.validate(config)

    with pytest.raises(UserError, match=r"add --config.data.std=none --config.data.mean=PATH .*ResNet_mean.binaryproto"):
        check(std="imagenet")
    check(mean="ResNet_mean.binaryproto")
