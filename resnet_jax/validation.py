"""Which settings make sense, alone and together, and which may change when a run continues. Imports no JAX."""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any

from resnet_jax.config import Section, TrainConfig, flatten
from resnet_jax.errors import UserError
from resnet_jax.models import zoo
from resnet_jax.weights import presets

CHOICES = {
    "model.shortcut": ("A", "B", "C"),
    "model.stride_placement": ("1x1", "3x3"),
    "model.max_pool": ("caffe", "torch"),
    "model.zero_channels": ("end", "both"),
    "model.init_fan": ("fan_in", "fan_out"),
    "model.dtype": ("float32", "bfloat16"),
    "data.source": ("digits", "cifar10", "folder", "tar", "tfds", "parquet", "records", "synthetic"),
    "data.augment": ("scale_crop", "inception_crop", "pad_crop", "pad_crop_no_flip", "none"),
    "data.resample": ("bilinear", "bicubic"),
    "data.policy": ("none", "randaugment", "trivialaugment"),
    "data.on_error": ("raise", "skip"),
    "data.mean": ("pixel", "channel", "imagenet", "none"),
    "data.std": ("none", "channel", "imagenet"),
    "optimizer.name": ("sgd_caffe", "sgd"),
    "optimizer.decay_mask": ("kernels", "all"),
    "matmul_precision": ("default", "high", "highest"),
}

MINIMUM = {
    "steps": 1,
    "batch_size": 1,
    "devices": 1,
    "seed": 0,
    "model.num_classes": 2,
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
    "optimizer.learning_rate": 0,
    "optimizer.momentum": 0,
    "optimizer.weight_decay": 0,
    "schedule.factor": 0,
    "schedule.warmup_steps": 0,
    "schedule.warmup_learning_rate": 0,
    "evaluation.batch_size": 1,
    "evaluation.image_size": 1,
    "evaluation.crop_fraction": 0.01,
    "evaluation.every": 0,
    "evaluation.precise_images": 0,
    "checkpoint.every": 0,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_best": 0,
    "logging.every": 1,
}

MAXIMUM = {
    "steps": 2**31 - 1,
    "seed": 2**32 - 1,
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
    "schedule.factor": 1e3,
    "schedule.warmup_steps": 2**31 - 1,
    "schedule.warmup_learning_rate": 1e6,
}

# Fields in which a continued run may differ from the stored one: they change where data is, how fast it comes, what is
# kept and shown, what happens at a broken image and when the run ends, never the numbers of a step.
MAY_CHANGE = (
    "steps",
    "devices",
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
    if groups is not None and config.batch_size % groups:
        raise UserError(
            f"batch_norm.group_size={groups} does not divide batch_size={config.batch_size}: "
            "choose a divisor of the batch size, or None to normalise over the whole batch"
        )
    bounds = config.schedule.boundaries
    if list(bounds) != sorted(set(bounds)) or any(not 0 <= b < 2**31 for b in bounds) or len(bounds) > 32:
        raise UserError(f"schedule.boundaries={bounds}: must be increasing step numbers, at most 32 of them")
    if config.optimizer.nesterov and config.optimizer.name != "sgd":
        raise UserError("optimizer.nesterov=True needs optimizer.name='sgd'")
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
    if config.batch_size % num_devices:
        near = config.batch_size // num_devices * num_devices or num_devices
        raise UserError(
            f"batch_size={config.batch_size} cannot be shared by {num_devices} devices: "
            f"choose a multiple of {num_devices} (such as {near}), or fewer devices with --config.devices=N"
        )
    group, local = config.batch_norm.group_size, config.batch_size // num_devices
    if group is not None and local % group and group % local:
        raise UserError(
            f"batch_norm.group_size={group} neither divides nor is a multiple of the {local} images on each of "
            f"{num_devices} devices: change group_size, batch_size or devices"
        )


def differences(stored: TrainConfig, given: TrainConfig) -> list[str]:
    """What forbids continuing the stored run with the given config, as 'field: stored there, given here'."""
    there, here = flatten(stored), flatten(given)
    return [
        f"{name}: {there[name]!r} there, {here[name]!r} here"
        for name in here
        if there[name] != here[name] and not name.startswith(MAY_CHANGE)
    ]
