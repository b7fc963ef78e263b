"""Weights in and out: PyTorch's files without PyTorch, torchvision's names, what is refused."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from resnet_jax import validation
from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.errors import UserError
from resnet_jax.models import resnet
from resnet_jax.weights import formats
from resnet_jax.weights.pth import read_pth
from resnet_jax.weights.torchvision import to_torch_layout, torch_name
from tests import helpers


def network(name="cifar_resnet8", classes=10, shortcut="B"):
    model = resnet.build(ModelConfig(name=name, shortcut=shortcut), BatchNormConfig(), classes)
    shapes = resnet.variable_shapes(model, (32, 32, 3))
    return shapes, helpers.random_like(shapes, np.float32)


def as_torch(variables):
    return {torch_name(name.split("/")[1:]): to_torch_layout(value) for name, value in helpers.flat(variables).items()}


class TestRoundTrip:
    @pytest.mark.parametrize(("name", "shortcut"), [("cifar_resnet8", "A"), ("cifar_resnet8", "C"), ("resnet50", "B")])
    def test_bit_for_bit(self, tmp_path, name, shortcut):
        shapes, variables = network(name, shortcut=shortcut)
        formats.export(variables, tmp_path / "x.safetensors")
        helpers.assert_same_bits(formats.load(f"resnet_jax:{tmp_path / 'x.safetensors'}", shapes), variables)

    def test_names_and_layouts_are_torchvisions(self, tmp_path):
        _, variables = network("resnet50", 1000)
        formats.export(variables, tmp_path / "x.safetensors")
        tensors = safetensors.numpy.load_file(tmp_path / "x.safetensors")
        assert tensors["conv1.weight"].shape == (64, 3, 7, 7)
        assert tensors["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
        assert tensors["layer4.2.bn3.running_var"].shape == (2048,)
        assert tensors["fc.weight"].shape == (1000, 2048)
        assert len(tensors) == 53 + 53 * 4 + 2
        kernel = variables["params"]["stage2"]["block3"]["conv2"]["kernel"]
        assert tensors["layer2.2.conv2.weight"][5, 6, 0, 2] == kernel[0, 2, 6, 5]


def persistent(tensors):
    """A pickle of a state dict as torch.save writes it, and its storages; written here from the format's description."""

    class FloatStorage:
        pass

    FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None

        def save_global(self, obj, name=None):
            if obj is FloatStorage:
                self.write(b"ctorch\nFloatStorage\n")
            elif obj is rebuild:
                self.write(b"ctorch._utils\n_rebuild_tensor_v2\n")
            else:
                super().save_global(obj, name)

        dispatch = pickle._Pickler.dispatch.copy()

    def rebuild():
        pass

    class Tensor:
        def __init__(self, key, value):
            self.key, self.value = key, value

        def __reduce__(self):
            strides = tuple(s // 4 for s in self.value.strides)
            storage = ("storage", FloatStorage, self.key, "cpu", self.value.size)
            return rebuild, (storage, 0, self.value.shape, strides, False, collections.OrderedDict())

    def dump(obj):
        buffer = io.BytesIO()
        pickler = Pickler(buffer, 2)
        pickler.dispatch[type(rebuild)] = Pickler.save_global
        pickler.dispatch[type] = Pickler.save_global
        pickler.dump(obj)
        return buffer.getvalue()

    state = collections.OrderedDict((name, Tensor(str(i), value)) for i, (name, value) in enumerate(tensors.items()))
    return dump(state), {str(i): value.tobytes() for i, value in enumerate(tensors.values())}


def write_zip(path, tensors):
    content, storages = persistent(tensors)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)


def write_legacy(path, tensors):
    content, storages = persistent(tensors)
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
        pickle.dump(1001, file, 2)
        pickle.dump({"little_endian": True}, file, 2)
        file.write(content)
        pickle.dump(list(storages), file, 2)
        for raw in storages.values():
            file.write(struct.pack("<q", len(raw) // 4) + raw)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
class TestPth:
    def test_reads_what_pytorch_writes(self, tmp_path, write):
        tensors = {
            "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "a.bias": np.array([1.5, -2.0], np.float32),
        }
        write(tmp_path / "x.pth", tensors)
        got = read_pth(tmp_path / "x.pth")
        assert got.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(got[name], value)

    def test_fills_a_network(self, tmp_path, write):
        shapes, variables = network()
        tensors = {f"module.{name}".replace("fc.", "linear."): value for name, value in as_torch(variables).items()}
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        write(tmp_path / "x.pth", tensors)
        helpers.assert_same_bits(formats.load(f"akamaster:{tmp_path / 'x.pth'}", shapes), variables)

    def test_truncated(self, tmp_path, write):
        write(tmp_path / "x.pth", {"w": np.ones(1000, np.float32)})
        data = (tmp_path / "x.pth").read_bytes()
        (tmp_path / "x.pth").write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=r"x\.pth: cannot be read as PyTorch weights"):
            read_pth(tmp_path / "x.pth")


class TestRefusals:
    def test_a_pickle_that_runs_code(self, tmp_path):
        marker = tmp_path / "ran"

        class Attack:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        with (tmp_path / "x.pth").open("wb") as file:
            for item in (0x1950A86A20F9469CFC6C, 1001, {}, {"w": Attack()}):
                pickle.dump(item, file, 2)
        with pytest.raises(UserError, match=r"it asks for .*open, which no weights need"):
            read_pth(tmp_path / "x.pth")
        assert not marker.exists()

    def test_a_tensor_that_reaches_beyond_its_storage(self, tmp_path):
        write_zip(tmp_path / "x.pth", {"w": np.ones(1000, np.float32)})
        content, _ = persistent({"w": np.ones(1000, np.float32)})
        with zipfile.ZipFile(tmp_path / "y.pth", "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/data/0", b"\0" * 40)
        with pytest.raises(UserError, match="reaches beyond its storage"):
            read_pth(tmp_path / "y.pth")

    def test_weights_of_another_network(self, tmp_path):
        _, variables = network()
        path = tmp_path / "x.safetensors"
        formats.export(variables, path)
        with pytest.raises(UserError, match=r"has no layer1\.1\.bn1\.running_mean, so it is of another network"):
            formats.load(f"resnet_jax:{path}", network("cifar_resnet14")[0])
        with pytest.raises(UserError, match=r"tensors more than this network, first layer2\.0\.downsample"):
            formats.load(f"resnet_jax:{path}", network(shortcut="A")[0])
        with pytest.raises(UserError, match=r"fc\.bias is \[10\], this network has \[7\].*--config\.init_head=False"):
            formats.load(f"resnet_jax:{path}", network(classes=7)[0])
        loaded = formats.load(f"resnet_jax:{path}", network(classes=7)[0], with_head=False)
        assert "head" not in loaded["params"]
        helpers.assert_same_bits(loaded["params"]["stage3"], variables["params"]["stage3"])

    @pytest.mark.parametrize("spec", ["resnet50.pth", "torch:resnet50.pth", "torchvision:"])
    def test_unknown_formats(self, spec):
        with pytest.raises(UserError, match="write FORMAT:PATH, with a format of torchvision"):
            validation.validate(helpers.digits_config(init=spec))

    def test_missing_and_broken_files(self, tmp_path):
        with pytest.raises(UserError, match="init: no file"):
            formats.load(f"torchvision:{tmp_path / 'x.pth'}", {})
        (tmp_path / "x.safetensors").write_bytes(b"nonsense")
        with pytest.raises(UserError, match="cannot be read as safetensors"):
            formats.load(f"torchvision:{tmp_path / 'x.safetensors'}", {})

    def test_settings_that_would_make_another_function(self):
        config = helpers.digits_config(init="torchvision:x.pth", model__name="resnet50", data__mean="imagenet")
        with pytest.raises(UserError) as caught:
            validation.validate(config)
        assert str(caught.value).endswith(
            "add --config.model.stride_placement=3x3 --config.model.max_pool=torch --config.data.std=imagenet"
        )


def test_a_bias_before_batch_norm_moves_into_its_mean(tmp_path):
    shapes, variables = network("resnet18", 10)
    tensors = {name.replace("fc.", "last_linear."): value for name, value in as_torch(variables).items()}
    tensors["conv1.bias"] = np.full(64, 0.5, np.float32)
    tensors["layer2.0.downsample.0.bias"] = np.full(128, 0.25, np.float32)
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "x.safetensors")
    loaded = formats.load(f"fb:{tmp_path / 'x.safetensors'}", shapes)
    want = variables["batch_stats"]
    np.testing.assert_array_equal(loaded["batch_stats"]["stem"]["bn"]["mean"], want["stem"]["bn"]["mean"] - np.float32(0.5))
    got, was = (tree["stage2"]["block1"]["shortcut"]["bn"]["mean"] for tree in (loaded["batch_stats"], want))
    np.testing.assert_array_equal(got, was - np.float32(0.25))


def test_fine_tuning_starts_from_the_weights_and_a_fresh_head(tmp_path):
    from resnet_jax.training import experiment, start

    _, variables = network(classes=7)
    path = tmp_path / "x.safetensors"
    formats.export(variables, path)
    config = helpers.digits_config(
        init=f"resnet_jax:{path}",
        init_head=False,
        model__name="cifar_resnet8",
        model__shortcut="B",
        data__source="synthetic",
        data__synthetic_classes=4,
        data__mean="imagenet",
    )
    config = helpers.validated(config)
    source = experiment.open_data(config, "train")
    state = start.first_state(experiment.build(config, 4, 3), source)
    helpers.assert_same_bits(state.params["stage2"], variables["params"]["stage2"])
    helpers.assert_same_bits(state.batch_stats, variables["batch_stats"])
    assert state.params["head"]["dense"]["kernel"].shape == (64, 4)


PUBLISHED = helpers.ROOT.parent / "shared/data/cifar_resnet_weights/resnet20-12fca82f.th"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the weights that akamaster publishes are not here")
def test_published_weights_load():
    shapes, _ = network("cifar_resnet20", shortcut="A")
    loaded = formats.load(f"akamaster:{PUBLISHED}", shapes)
    assert resnet.count_parameters(loaded) == 269_722
    assert loaded["batch_stats"]["stage3"]["block3"]["bn2"]["var"].min() > 0
