"""Configs: every file in configs/ is valid and documented; wrong fields and values end in one clear line."""

import dataclasses
import importlib.util
import pathlib

import pytest

from resnet_jax import config as config_lib
from resnet_jax import recipes, validation
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError
from resnet_jax.section import Section, flatten
from tests import helpers

FILES = sorted((helpers.ROOT / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_file(path):
    module = load(path)
    for heading in ("Command:", "Hardware:", "Expected time:", "Expected result:"):
        assert heading in module.__doc__
    assert f"--config=configs/{path.name}" in module.__doc__
    assert "TBD" not in module.__doc__
    config = module.get_config()
    if config.data.source in ("cifar10", "folder"):
        config.data.root = "somewhere"
    validation.validate(config)
    assert config.batch_norm.group_size is None
    if path.stem != "digits":
        assert (
            config.model.name.removeprefix("cifar_")
            == path.stem.removeprefix("cifar10_").split("_fb")[0].split("_modern")[0]
        )


def test_all_of_the_papers_networks_have_a_config():
    stems = {path.stem for path in FILES}
    assert {f"resnet{d}" for d in (18, 34, 50, 101, 152)} | {"plain18", "plain34", "digits"} <= stems
    assert {f"cifar10_resnet{d}" for d in (20, 32, 44, 56, 110, 1202)} <= stems
    assert {f"cifar10_plain{d}" for d in (20, 32, 44, 56)} <= stems


def test_the_papers_recipes():
    imagenet, cifar = recipes.paper_imagenet("resnet50"), recipes.paper_cifar10("cifar_resnet20")
    assert (imagenet.steps, imagenet.batch_size, imagenet.schedule.boundaries) == (
        600_000,
        256,
        (150_000, 300_000, 450_000),
    )
    assert (cifar.steps, cifar.batch_size, cifar.schedule.boundaries) == (64_000, 128, (32_000, 48_000))
    for config in (imagenet, cifar):
        o = config.optimizer
        assert (o.name, o.learning_rate, o.momentum, o.weight_decay, o.decay_mask) == (
            "sgd_caffe",
            0.1,
            0.9,
            1e-4,
            "kernels",
        )
    assert imagenet.data.train_scale == (256, 480)
    assert (imagenet.data.lighting, cifar.data.lighting) == (0.1, 0.0)
    assert imagenet.model.stride_placement == "1x1"


def test_every_field_is_documented():
    """Each field or run of fields is followed by a string that says what it is (the two that name themselves aside)."""
    text = (helpers.ROOT / "resnet_jax/config.py").read_text().splitlines()
    named = {"momentum", "factor", "warmup_learning_rate"}
    for index, line in enumerate(text):
        stripped = line.strip()
        is_field = line.startswith("    ") and ": " in stripped and "=" in stripped and not line.startswith("     ")
        name = stripped.split(":")[0]
        if is_field and name.isidentifier() and "default_factory" not in stripped and name not in named:
            assert text[index + 1].strip().startswith('"""'), f"{name} has no description"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model__name", "resnet51", "model.name='resnet51' is not known; did you mean 'resnet50'?"),
        ("model__shortcut", "D", "model.shortcut='D' is not known; choose one of: A, B, C"),
        ("model__dtype", "bfloat", "model.dtype='bfloat' is not known; did you mean 'bfloat16'?"),
        ("steps", 1.5, "steps=1.5: expected int, got float"),
        ("steps", 0, "steps=0: must be at least 1"),
        ("batch_size", True, "batch_size=True: expected int, got bool"),
        ("optimizer__learning_rate", "fast", "optimizer.learning_rate='fast': expected float, got str"),
        ("optimizer__learning_rate", float("nan"), "optimizer.learning_rate=nan: must be a finite number"),
        ("optimizer__learning_rate", 1e39, "optimizer.learning_rate=1e+39: must be at most 1000000.0"),
        ("optimizer__momentum", 5.0, "optimizer.momentum=5.0: must be at most 1"),
        ("seed", 2**64, "must be at most 4294967295"),
        ("schedule__boundaries", (2**40,), "must be increasing step numbers"),
        ("model__name", "cifar_resnet9999999998", "is not known"),
        ("optimizer__nesterov", True, "optimizer.nesterov=True needs optimizer.name='sgd'"),
        ("schedule__boundaries", (5, 3), "schedule.boundaries=(5, 3): must be increasing"),
        ("schedule__boundaries", (5, "7"), "schedule.boundaries=(5, '7'): expected tuple"),
        ("schedule__boundaries", (0.5, 5), "schedule.boundaries=(0.5, 5): steps are whole; or set unit='epochs'"),
        ("schedule__warmup_steps", 400, "schedule.warmup_steps=400 with schedule.warmup='none'"),
        ("schedule__warmup", "linear", "schedule.warmup_steps=0.0 with schedule.warmup='linear'"),
        ("accumulate", 3, "accumulate=3: batch_size=16 is not so many equal micro-batches"),
        ("loss__target_threshold", 0.2, "loss.target_threshold needs loss.name='bce_mean' or 'bce_sum'"),
        ("optimizer__name", "adam", "optimizer.name='adam' is not known; did you mean 'adamw'?"),
        ("unit", "epoch", "unit='epoch' is not known; did you mean 'epochs'?"),
        ("data__source", "folder", "data.source='folder' needs a folder: add --config.data.root=PATH"),
        ("data__source", "records", "data.source='records' needs a folder: add --config.data.root=PATH"),
        ("data__name", "imagenet2012", "data.name='imagenet2012' names a TFDS set: it needs data.source='tfds'"),
        ("data__augment", "scale_crop", None),
        ("evaluation__resize", 4, "evaluation.resize=4 is smaller than data.image_size=8"),
        ("data__crop_scale", (0.5, 0.1), "data.crop_scale=(0.5, 0.1): need 0 < low <= high <= 1"),
        ("data__crop_scale", (0.5, 1), None),
        ("data__policy", "randaug", "data.policy='randaug' is not known; did you mean 'randaugment'?"),
        ("data__policy_magnitude", 31, "data.policy_magnitude=31: must be at most 30"),
        ("data__on_error", "ignore", "data.on_error='ignore' is not known; choose one of: raise, skip"),
        ("mix__label_smoothing", 1.5, "mix.label_smoothing=1.5: must be at most 1"),
        ("evaluation__crop_fraction", 1.5, "evaluation.crop_fraction=1.5: must be at most 1"),
        ("batch_norm__group_size", 5, "batch_norm.group_size=5 does not divide batch_size=16"),
        ("checkpoint__keep_last", 0, "checkpoint.keep_last=0: must be at least 1"),
    ],
)
def test_wrong_values(field, value, message):
    config = helpers.digits_config(**{field: value})
    if message is None:
        validation.validate(config)
        return
    with pytest.raises(UserError) as caught:
        validation.validate(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("augment", "scale_crop"),
        ("policy", "randaugment"),
        ("lighting", 0.1),
        ("random_erasing", 0.5),
        ("colour_jitter", 0.1),
    ],
)
def test_what_the_device_cannot_do_stays_on_the_host(field, value):
    config = helpers.digits_config(data__placement="device", data__train_scale=(8, 12), **{f"data__{field}": value})
    with pytest.raises(UserError, match=rf"data\.placement='device' needs data\.{field}=.*, not {value!r}; or"):
        validation.validate(config)


def test_plain_networks_take_no_shortcut():
    with pytest.raises(UserError, match=r"model\.shortcut='B': cifar_plain20 is a plain network"):
        validation.validate(helpers.digits_config(model__name="cifar_plain20", model__shortcut="B"))


def test_settings_that_exclude_each_other():
    def refused(message, **fields):
        with pytest.raises(UserError, match=message):
            validation.validate(helpers.digits_config(**fields))

    refused(
        r"accumulate=4: batch_size=16 is not so many equal micro-batches of whole groups of batch_norm.group_size=8",
        accumulate=4,
        batch_norm__group_size=8,
    )
    refused(r"model\.drop_path=0.1: cifar_plain20 has no shortcuts", model__name="cifar_plain20", model__drop_path=0.1)
    refused("needs schedule.factor between 0 and 1", schedule__name="plateau", schedule__factor=2.0)


def test_the_length_of_some_schedules_may_not_change():
    def differ(name):
        one, other = (helpers.digits_config(steps=steps, schedule__name=name) for steps in (4, 9))
        return validation.differences(one, other)

    assert differ("cosine") == ["steps: 4 there, 9 here"]
    assert differ("plateau") == []


def test_scale_crop_must_fit():
    config = helpers.digits_config(data__augment="scale_crop", data__train_scale=(6, 12))
    with pytest.raises(UserError, match=r"data\.train_scale=\(6, 12\)"):
        validation.validate(config)


def test_the_tested_size_must_fit():
    config = helpers.digits_config(evaluation__image_size=12, evaluation__resize=10)
    with pytest.raises(UserError, match=r"evaluation\.resize=10 is smaller than evaluation\.image_size=12"):
        validation.validate(config)
    config.evaluation.crop_fraction = 0.9
    validation.validate(config)


def test_mixing_needs_two_images():
    config = helpers.digits_config(data__repeats=16, mix__mixup_alpha=0.2)
    with pytest.raises(UserError, match=r"mix: batch_size=16 holds copies of one image only, with data\.repeats=16"):
        validation.validate(config)


def test_unknown_fields_are_refused_when_assigned():
    config = TrainConfig()
    with pytest.raises(UserError, match="no field 'learning_rat'; did you mean 'learning_rate'"):
        config.optimizer.learning_rat = 0.2
    with pytest.raises(UserError, match="TrainConfig has no field 'lr'; it has: steps"):
        config.lr = 0.2


def test_frozen_once_validated():
    config = validation.validate(helpers.digits_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optimizer.learning_rate = 3.0


def test_stored_and_read_back(tmp_path):
    config = validation.validate(helpers.digits_config(batch_norm__group_size=8, schedule__boundaries=(1, 2)))
    path = tmp_path / "config.json"
    path.write_text(config_lib.to_json(config))
    again = validation.validate(config_lib.load(path))
    assert again == config
    assert validation.differences(again, config) == []
    path.write_text(config_lib.to_json(config).replace('"steps"', '"stepz"'))
    with pytest.raises(UserError, match="has no field 'stepz'; did you mean 'steps'"):
        config_lib.load(path)
    for text in ("[]", '{"model": 3}'):
        path.write_text(text)
        with pytest.raises(UserError, match="expected fields, found"):
            config_lib.load(path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as a stored config"):
        config_lib.load(path)


def test_differences_that_forbid_to_continue():
    one = helpers.digits_config()
    other = helpers.digits_config(steps=9, data__workers=2, logging__every=7, optimizer__learning_rate=0.3, seed=1)
    assert validation.differences(one, other) == [
        "seed: 0 there, 1 here",
        "optimizer.learning_rate: 0.1 there, 0.3 here",
    ]


def test_rules_name_real_fields():
    names = flatten(TrainConfig())
    assert set(validation.CHOICES) <= set(names)
    assert set(validation.MINIMUM) | set(validation.MAXIMUM) <= set(names)
    assert all(any(name.startswith(prefix) for name in names) for prefix in validation.MAY_CHANGE)


def test_reading_a_config_imports_no_jax(tmp_path):
    import subprocess
    import sys

    code = "import sys, configs.resnet50 as c, resnet_jax.validation as v; c=c.get_config(); c.data.root='x'; v.validate(c)"
    result = subprocess.run(
        [sys.executable, "-c", code + "; sys.exit('jax' in sys.modules)"], cwd=pathlib.Path(helpers.ROOT), check=False
    )
    assert result.returncode == 0
    assert issubclass(TrainConfig, Section)
