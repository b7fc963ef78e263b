"""Which settings make sense, alone and together, and which may change when a run continues. Imports no JAX."""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any

from resnet_jax import durations
from resnet_jax.config import DataConfig, TrainConfig
from resnet_jax.errors import UserError
from resnet_jax.models import zoo
from resnet_jax.section import Section, flatten
from resnet_jax.weights import presets

CHOICES = {
    "model.shortcut": ("A", "B", "C"),
    "model.stride_placement": ("1x1", "3x3"),
    "model.max_pool": ("caffe", "torch"),
    "model.zero_channels": ("end", "both"),
    "model.init_fan": ("fan_in", "fan_out"),
    "model.dtype": ("float32", "bfloat16", "float16"),
    "model.drop_path_rule": ("linear", "constant"),
    "data.source": ("digits", "cifar10", "folder", "tar", "tfds", "parquet", "records", "synthetic"),
    "data.augment": ("scale_crop", "inception_crop", "pad_crop", "pad_crop_no_flip", "none"),
    "data.resample": ("bilinear", "bicubic"),
    "data.policy": ("none", "randaugment", "trivialaugment"),
    "data.on_error": ("raise", "skip"),
    "data.placement": ("host", "device"),
    "data.mean": ("pixel", "channel", "imagenet", "none"),
    "data.std": ("none", "channel", "imagenet"),
    "loss.name": ("cross_entropy", "bce_mean", "bce_sum"),
    "optimizer.name": ("sgd_caffe", "sgd", "lars", "lamb", "adamw"),
    "optimizer.decay_mask": ("kernels", "all"),
    "schedule.name": ("step", "constant", "cosine", "polynomial", "linear", "plateau"),
    "schedule.plateau_metric": ("loss", "error"),
    "schedule.warmup": ("none", "constant", "linear", "error"),
    "average.evaluate": ("beside", "instead"),
    "unit": ("steps", "epochs", "examples"),
    "matmul_precision": ("default", "high", "highest"),
}

MINIMUM = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "devices": 1,
    "steps_per_dispatch": 1,
    "seed": 0,
    "model.num_classes": 2,
    "model.drop_path": 0,
    "batch_norm.group_size": 1,
    "batch_norm.momentum": 0,
    "batch_norm.epsilon": 0,
    "data.image_size": 1,
    "data.pad": 0,
    "data.lighting": 0,
    "data.colour_jitter": 0,
    "data.policy_count": 1,
    "data.policy_magnitude": 0,
    "data.random_erasing": 0,
    "data.repeats": 1,
    "mix.mixup_alpha": 0,
    "mix.cutmix_alpha": 0,
    "mix.label_smoothing": 0,
    "data.workers": 0,
    "data.threads": 1,
    "data.synthetic_images": 8,
    "data.synthetic_classes": 2,
    "loss.target_threshold": 0,
    "optimizer.learning_rate": 0,
    "optimizer.learning_rate_per": 1,
    "optimizer.momentum": 0,
    "optimizer.weight_decay": 0,
    "optimizer.beta1": 0,
    "optimizer.beta2": 0,
    "optimizer.epsilon": 0,
    "optimizer.trust_coefficient": 0,
    "optimizer.clip_norm": 1e-6,
    "schedule.factor": 0,
    "schedule.final_learning_rate": 0,
    "schedule.power": 0,
    "schedule.plateau_window": 0,
    "schedule.plateau_patience": 1,
    "schedule.plateau_threshold": 1e-6,
    "schedule.warmup_steps": 0,
    "schedule.warmup_learning_rate": 0,
    "schedule.warmup_error": 0,
    "schedule.warmup_error_window": 1,
    "average.decay": 0,
    "evaluation.batch_size": 1,
    "evaluation.image_size": 1,
    "evaluation.crop_fraction": 0.01,
    "evaluation.every": 0,
    "evaluation.precise_images": 0,
    "checkpoint.every": 0,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_best": 0,
    "checkpoint.keep_every": 0,
    "logging.every": 1,
}

MAXIMUM = {
    "steps": durations.MOST,
    "seed": 2**32 - 1,
    "steps_per_dispatch": 10_000,
    "model.drop_path": 0.99,
    "batch_norm.momentum": 1,
    "data.lighting": 10,
    "data.colour_jitter": 1,
    "data.policy_magnitude": 30,
    "data.random_erasing": 1,
    "mix.mixup_alpha": 1e3,
    "mix.cutmix_alpha": 1e3,
    "mix.label_smoothing": 1,
    "evaluation.crop_fraction": 1,
    "optimizer.learning_rate": 1e6,
    "optimizer.momentum": 1,
    "optimizer.weight_decay": 1e6,
    "optimizer.beta1": 0.99999,
    "optimizer.beta2": 0.99999,
    "optimizer.epsilon": 1,
    "optimizer.trust_coefficient": 1e6,
    "optimizer.clip_norm": 1e6,
    "loss.target_threshold": 1,
    "schedule.factor": 1e3,
    "schedule.final_learning_rate": 1e6,
    "schedule.power": 100,
    "schedule.plateau_window": durations.MOST,
    "schedule.plateau_threshold": 1,
    "schedule.warmup_steps": durations.MOST,
    "schedule.warmup_learning_rate": 1e6,
    "schedule.warmup_error": 1,
    "schedule.warmup_error_window": 100_000,
    "average.decay": 0.999999,
}

# Fields in which a continued run may differ from the stored one: they change where data is, how fast it comes, what is
# kept and shown, what happens at a broken image and when the run ends, never the numbers of a step.
MAY_CHANGE = (
    "steps",  # must be first: `differences`
    "devices",
    "steps_per_dispatch",
    "init",
    "model.scan_blocks",
    "model.remat",
    "data.root",
    "data.workers",
    "data.threads",
    "data.on_error",
    "evaluation.batch_size",
    "evaluation.every",
    "evaluation.precise_images",
    "checkpoint.",
    "logging.",
)


def _type_error(path: str, value: Any, hint: Any) -> str | None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is types.NoneType:
            if value is None:
                return None
        elif typing.get_origin(option) is tuple:
            args = typing.get_args(option)
            length_ok = args[-1] is Ellipsis or (isinstance(value, tuple) and len(value) == len(args))
            kinds = (int, float) if args[0] is float else args[:1]
            if isinstance(value, tuple) and length_ok and all(type(item) in kinds for item in value):
                return None
        elif option is float:
            if type(value) in (int, float) and math.isfinite(value):
                return None
        elif type(value) is option:
            return None
    if type(value) is float and not math.isfinite(value):
        return f"{path}={value!r}: must be a finite number"
    name = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
    return f"{path}={value!r}: expected {name}, got {type(value).__name__}"


def _check_fields(config: Section, prefix: str = "") -> None:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        path, value = prefix + field.name, getattr(config, field.name)
        if isinstance(value, Section):
            _check_fields(value, f"{path}.")
            continue
        if problem := _type_error(path, value, hints[field.name]):
            raise UserError(problem)
        if value is None:
            continue
        if path == "data.mean" and str(value).endswith(presets.MEAN_FILES):
            continue
        if path in CHOICES and value not in CHOICES[path]:
            near = difflib.get_close_matches(str(value), CHOICES[path], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(CHOICES[path])}"
            raise UserError(f"{path}={value!r} is not known; {hint}")
        if path in MINIMUM and value < MINIMUM[path]:
            raise UserError(f"{path}={value!r}: must be at least {MINIMUM[path]}")
        if path in MAXIMUM and value > MAXIMUM[path]:
            raise UserError(f"{path}={value!r}: must be at most {MAXIMUM[path]}")


def validate(config: TrainConfig, needs_data: bool = True) -> TrainConfig:
    """Checks every field's type, value and the rules between fields; returns the config, frozen.

    Args:
      config: mutable; it is frozen in place.
      needs_data: whether `data.root` must be given where the source has files.

    Raises:
      UserError: one line naming the field, its value and what is possible.
    """
    _check_fields(config)
    if zoo.architecture(config.model.name).shortcut is None and config.model.shortcut is not None:
        raise UserError(
            f"model.shortcut={config.model.shortcut!r}: {config.model.name} is a plain network, without shortcuts"
        )
    stages = len(zoo.architecture(config.model.name).stage_sizes)
    if not set(config.model.remat) <= set(range(1, stages + 1)):
        raise UserError(f"model.remat={config.model.remat}: {config.model.name} has stages 1 to {stages}")
    data, groups = config.data, config.batch_norm.group_size
    if needs_data and data.source not in ("digits", "synthetic") and not data.root:
        raise UserError(f"data.source={data.source!r} needs a folder: add --config.data.root=PATH")
    if data.name is not None and data.source != "tfds":
        raise UserError(f"data.name={data.name!r} names a TFDS set: it needs data.source='tfds', not {data.source!r}")
    low, high = data.train_scale
    if data.augment == "scale_crop" and not data.image_size <= low <= high:
        raise UserError(
            f"data.train_scale={data.train_scale}: need image_size <= low <= high, and data.image_size is {data.image_size}"
        )
    _check_augmentation(config)
    window = config.logging.profile_steps
    if window and not (len(window) == 2 and 1 <= window[0] <= window[1]):
        raise UserError(f"logging.profile_steps={window}: must be (first, last), such as (20,25), or empty")
    if groups is not None and config.batch_size % groups:
        raise UserError(
            f"batch_norm.group_size={groups} does not divide batch_size={config.batch_size}: "
            "choose a divisor of the batch size, or None to normalise over the whole batch"
        )
    if config.batch_size % config.accumulate or config.batch_size // config.accumulate % (groups or 1):
        what = f"micro-batches of whole groups of batch_norm.group_size={groups}" if groups else "micro-batches"
        raise UserError(f"accumulate={config.accumulate}: batch_size={config.batch_size} is not so many equal {what}")
    if config.model.drop_path and zoo.architecture(config.model.name).shortcut is None:
        raise UserError(f"model.drop_path={config.model.drop_path}: {config.model.name} has no shortcuts to be left with")
    if config.loss.target_threshold is not None and not config.loss.name.startswith("bce"):
        raise UserError("loss.target_threshold needs loss.name='bce_mean' or 'bce_sum'")
    if config.optimizer.nesterov and config.optimizer.name not in ("sgd", "lars"):
        raise UserError("optimizer.nesterov=True needs optimizer.name='sgd' or 'lars'")
    _check_schedule(config)
    if config.evaluation.precise_images:
        check_precise(config, config.evaluation.precise_images)
    if config.init is not None:
        presets.check_config(config)
    config.freeze()
    return config


def _check_augmentation(config: TrainConfig) -> None:
    data, evaluation = config.data, config.evaluation
    for name, (low, high), most in (("crop_scale", data.crop_scale, 1), ("crop_ratio", data.crop_ratio, 100)):
        if not 0 < low <= high <= most:
            raise UserError(f"data.{name}={getattr(data, name)}: need 0 < low <= high <= {most}")
    if data.placement == "device":
        _check_placement(data)
    size = config.test_size()
    if evaluation.crop_fraction is None and evaluation.resize is not None and evaluation.resize < size:
        name = "data.image_size" if evaluation.image_size is None else "evaluation.image_size"
        raise UserError(
            f"evaluation.resize={evaluation.resize} is smaller than {name}={size}; "
            "make it at least as large, or None for images that already have that size"
        )
    if config.batch_size <= data.repeats and (config.mix.mixup_alpha or config.mix.cutmix_alpha):
        raise UserError(
            f"mix: batch_size={config.batch_size} holds copies of one image only, with data.repeats={data.repeats}; "
            "mixing needs two images"
        )


def _check_placement(data: DataConfig) -> None:
    for name, possible in (
        ("source", ("cifar10", "digits", "synthetic")),
        ("augment", ("pad_crop", "pad_crop_no_flip", "none")),
        ("policy", ("none",)),
        ("lighting", (0,)),
        ("colour_jitter", (0,)),
        ("random_erasing", (0,)),
    ):
        if (value := getattr(data, name)) not in possible:
            options = " or ".join(map(repr, possible))
            raise UserError(f"data.placement='device' needs data.{name}={options}, not {value!r}; or data.placement='host'")


def _check_schedule(config: TrainConfig) -> None:
    schedule, bounds = config.schedule, config.schedule.boundaries
    if list(bounds) != sorted(set(bounds)) or any(not 0 <= b <= durations.MOST for b in bounds) or len(bounds) > 32:
        raise UserError(f"schedule.boundaries={bounds}: must be increasing step numbers, at most 32 of them")
    if config.unit == "steps":
        for name, values in durations.values(config).items():
            if any(value != int(value) for value in values):
                raise UserError(f"{name}={values[0] if len(values) == 1 else values}: steps are whole; or set unit='epochs'")
    for name in ("evaluation", "checkpoint"):
        if config.unit == "epochs" and getattr(config, name).every > config.steps:
            raise UserError(
                f"{name}.every={getattr(config, name).every} epochs, in a run of {config.steps}: it is counted in "
                "unit='epochs' too; set it to 1, say"
            )
    if bool(schedule.warmup_steps) != (schedule.warmup in ("constant", "linear")):
        raise UserError(
            f"schedule.warmup_steps={schedule.warmup_steps} with schedule.warmup={schedule.warmup!r}: "
            "constant and linear warm-ups need a duration, and only they"
        )
    if schedule.name == "plateau":
        if not 0 < schedule.factor < 1 or not schedule.plateau_window:
            raise UserError("schedule.name='plateau' needs schedule.factor between 0 and 1 and schedule.plateau_window > 0")
        if not schedule.final_learning_rate <= config.optimizer.learning_rate or not config.optimizer.learning_rate:
            raise UserError("schedule.name='plateau' needs 0 <= schedule.final_learning_rate <= optimizer.learning_rate > 0")


def check_precise(config: TrainConfig, images: int) -> None:
    """Refuses to estimate batch-norm statistics from less than a training batch, or where they are constants."""
    if config.batch_norm.frozen:
        raise UserError("batch_norm.frozen=True: the statistics are constants; there is nothing to estimate anew")
    if images < config.batch_size:
        raise UserError(
            f"evaluation.precise_images: {images} images do not fill one training batch of {config.batch_size}; "
            "take at least that many"
        )


def check_devices(config: TrainConfig, num_devices: int) -> None:
    """Refuses batches and batch-norm groups that the devices cannot share evenly.

    A group must divide the images on a device or be a multiple of them: otherwise XLA would gather the whole batch on
    every device, without a word.
    """
    parts = num_devices * config.accumulate
    each = f"{num_devices} devices" + (f" in accumulate={config.accumulate} micro-batches" * (config.accumulate > 1))
    if config.batch_size % parts:
        near = config.batch_size // parts * parts or parts
        raise UserError(
            f"batch_size={config.batch_size} cannot be shared by {each}: "
            f"choose a multiple of {parts} (such as {near}), or fewer devices with --config.devices=N"
        )
    group, local = config.batch_norm.group_size, config.batch_size // parts
    if group is not None and local % group and group % local:
        raise UserError(
            f"batch_norm.group_size={group} neither divides nor is a multiple of the {local} images on each of "
            f"{each}: change group_size, batch_size or devices"
        )


def differences(stored: TrainConfig, given: TrainConfig) -> list[str]:
    """What forbids continuing the stored run with the given config, as 'field: stored there, given here'.

    The number of steps may change, unless the learning rate of every step depends on it.
    """
    there, here = flatten(stored), flatten(given)
    may_change = MAY_CHANGE[given.schedule.name in ("cosine", "polynomial", "linear") :]
    return [
        f"{name}: {there[name]!r} there, {here[name]!r} here"
        for name in here
        if there[name] != here[name] and not name.startswith(may_change)
    ]
