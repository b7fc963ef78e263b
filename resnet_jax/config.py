"""Everything that a run can be told, as typed dataclasses.

A config file (`configs/*.py`) has a function `get_config()` that returns a `TrainConfig`. Flags then change single
fields, `--config.optimizer.learning_rate=0.2`; afterwards `validation.validate` checks all of it and freezes it.

Order of precedence: the defaults below, then the config file, then the flags.

Durations are in training steps (one step is one update with one global batch). Sizes are in pixels.
"""

import dataclasses
import difflib
import json
import pathlib
import typing
from typing import Any

from resnet_jax.errors import UserError


@dataclasses.dataclass
class Section:
    """A group of settings: refuses unknown fields with the nearest valid name, and every change once frozen."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__:
            raise UserError(unknown_field(type(self).__name__, name, list(self.__dataclass_fields__)))
        if self.__dict__.get("_frozen"):
            raise dataclasses.FrozenInstanceError(f"cannot assign to {name!r}: the config is validated and frozen")
        object.__setattr__(self, name, value)

    def freeze(self) -> None:
        """Makes this section and all sections in it read-only."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Section):
                value.freeze()
        object.__setattr__(self, "_frozen", True)


@dataclasses.dataclass
class ModelConfig(Section):
    """Which network. Defaults are the paper's."""

    name: str = "resnet50"
    """A name in `resnet_jax.models.zoo`: resnet18 ... resnet152, plain18, plain34, cifar_resnet20 ... 1202 and
    cifar_plain20 ... (6n+2 layers, section 4.2)."""
    num_classes: int | None = None
    """Outputs of the head; None: as many classes as the data has."""
    shortcut: str | None = None
    """A (identity, zero-padded), B (projection where the dimensions change), C (all projections), section 4.1; None: the
    network's own (B on ImageNet, A on CIFAR, no shortcut in plain nets)."""
    stride_placement: str = "1x1"
    """Where a bottleneck down-samples: '1x1' (its first convolution: the paper, "v1") or '3x3' (torchvision, "v1.5")."""
    max_pool: str = "caffe"
    """Padding of the stem's 3x3/2 max pooling: 'caffe' (right and bottom only, as the authors' release) or 'torch'
    (one pixel on every side)."""
    zero_channels: str = "end"
    """Where shortcut A puts its zero channels: 'end', or 'both' (half before, half after: akamaster's CIFAR weights)."""
    init_fan: str = "fan_in"
    """He initialisation, normal with standard deviation sqrt(2 / fan): 'fan_in' or 'fan_out'."""
    zero_init_last: bool = False
    """Start each block's last batch-norm scale at zero (Goyal et al. 2017; not in the paper)."""
    dtype: str = "float32"
    """Of activations: float32 or bfloat16. Parameters, batch-norm statistics, logits and loss stay in float32."""
    scan_blocks: bool = False
    """Compile the equal blocks of a stage once and run them as a loop: for the deepest networks, on accelerators (on CPU,
    XLA runs convolutions inside loops many times slower). Checkpoints are the same either way."""
    remat: tuple[int, ...] = ()
    """Stages (1 is conv2_x) whose blocks keep only their inputs and are computed again in the backward pass: less memory,
    more time."""


@dataclasses.dataclass
class BatchNormConfig(Section):
    """Batch normalisation."""

    group_size: int | None = None
    """Images that are normalised together: None is the whole global batch, across devices; 32 reproduces the paper's
    eight GPUs with 32 images each (64 on CIFAR), whatever the number of devices here."""
    momentum: float = 0.9
    """Share of the old running statistics kept at each step."""
    epsilon: float = 1e-5
    """Added to the variance."""
    frozen: bool = False
    """Train with constant statistics, scales and biases, as the paper's detectors do (appendix A)."""


@dataclasses.dataclass
class DataConfig(Section):
    """Which images, and how they are prepared."""

    source: str = "folder"
    """folder (train/<class>/*, val/<class>/*), tar (the official ILSVRC tars), tfds (prepared by TensorFlow Datasets),
    parquet (as on the Hugging Face hub), records (packed by resnet_jax.data.prepare), cifar10, digits or synthetic."""
    root: str | None = None
    """Where the data is: the folder that holds train and val, the tars, the Parquet files, dataset.json, CIFAR-10's
    batches, or TFDS's data_dir. A path or, but for cifar10, gs://BUCKET/PATH."""
    name: str | None = None
    """Which set in TFDS's data_dir: imagenet2012, set:version or set/config (tfds only); None: the only one there."""
    image_size: int = 224
    """Height and width of the network's input."""
    augment: str = "scale_crop"
    """In training: scale_crop (section 3.4: shorter side drawn from `train_scale`, random crop, flip), inception_crop (a box
    of random area and shape, resized, flip: torchvision's RandomResizedCrop), pad_crop (section 4.2: pad `pad` pixels,
    random crop, flip), pad_crop_no_flip (for digits and letters), or none."""
    train_scale: tuple[int, int] = (256, 480)
    """Range of the shorter side in scale_crop, both ends included."""
    pad: int = 4
    """Pixels of zero padding (after the mean is subtracted) on each side in pad_crop."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the share of the image's area in inception_crop."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width / height in inception_crop."""
    resample: str = "bilinear"
    """How images are resized, in training and at test: bilinear or bicubic."""
    antialias: bool = True
    """Resize as Pillow does, which is the field's reference; False: as OpenCV does, faster, with aliases where images
    shrink (`resnet_jax.data.resample`)."""
    lighting: float = 0.0
    """Standard deviation of the principal components' weights in AlexNet's colour augmentation, the paper's "standard color
    augmentation" (there 0.1); 0: none."""
    colour_jitter: float = 0.0
    """Brightness, contrast and saturation in random order, each by a factor in 1 +- this (fb.resnet.torch: 0.4); 0: none."""
    policy: str = "none"
    """Random operations on the cropped image: randaugment, trivialaugment (wide), or none."""
    policy_count: int = 2
    """Operations per image in randaugment."""
    policy_magnitude: int = 9
    """Strength in randaugment, 0 to 30."""
    random_erasing: float = 0.0
    """Probability that a random box of the normalised image is set to zero."""
    repeats: int = 1
    """Repeated augmentation (Hoffer et al. 2019): so many consecutive positions of the stream show the same image, each
    augmented in its own way. They are mostly on the same device; an epoch takes so many times as many steps."""
    on_error: str = "raise"
    """At a broken image: raise (stop, naming it), or skip: training takes the next image in its place, testing does not
    score it; either names and counts it."""
    mean: str = "imagenet"
    """Subtracted from pixels in [0, 255]: pixel (per-pixel mean of the training set), channel (its mean per channel),
    imagenet (the known mean per channel), none, or the path of a mean image: Caffe's .binaryproto, or .npy with floats
    [height, width, 3], RGB in [0, 255]; taken per pixel if it has the size of `image_size`, else its average over all
    pixels. Kept in the checkpoint."""
    std: str = "none"
    """Divided by afterwards: none (the paper), channel (of the training set) or imagenet."""
    workers: int = 0
    """Processes that load and augment; 0 does it in threads of this process."""
    threads: int | None = None
    """Threads per process that load and augment; None: one per core for encoded images (at most 16), else 1."""
    synthetic_images: int = 1024
    """Size of the synthetic training set (a quarter of it for testing)."""
    synthetic_classes: int = 1000
    """Classes of the synthetic set."""


@dataclasses.dataclass
class MixConfig(Section):
    """What happens to a training batch as a whole, on the device, and to its targets."""

    mixup_alpha: float = 0.0
    """Mixup (Zhang et al. 2017): every image blended with another, by one share per batch from Beta(alpha, alpha); 0: none.
    With cutmix too, each batch gets one of the two."""
    cutmix_alpha: float = 0.0
    """CutMix (Yun et al. 2019): in every image a box from another one, the same box for a batch; its area is drawn from
    Beta(alpha, alpha); 0: none."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes (Szegedy et al. 2015: 0.1)."""


@dataclasses.dataclass
class OptimizerConfig(Section):
    """Stochastic gradient descent (section 3.4)."""

    name: str = "sgd_caffe"
    """sgd_caffe: v = m*v + lr*g, w = w - v, as the authors trained; sgd: v = m*v + g, w = w - lr*v, as in PyTorch. They
    differ whenever the learning rate changes."""
    learning_rate: float = 0.1
    """Before any drop. It is never scaled with the batch size behind your back."""
    momentum: float = 0.9
    nesterov: bool = False
    """Nesterov momentum (sgd only)."""
    weight_decay: float = 1e-4
    """Added to the gradient as weight_decay * parameter."""
    decay_mask: str = "kernels"
    """What decays: kernels (convolution and dense weights) or all (batch-norm scales and biases too)."""


@dataclasses.dataclass
class ScheduleConfig(Section):
    """The learning rate over the steps."""

    boundaries: tuple[int, ...] = (150_000, 300_000, 450_000)
    """Steps at which the rate is multiplied by `factor`; the update number `boundary` (from 0) is the first with it."""
    factor: float = 0.1
    warmup_steps: int = 0
    """Steps at the start that use `warmup_learning_rate` instead."""
    warmup_learning_rate: float = 0.01


@dataclasses.dataclass
class EvaluationConfig(Section):
    """Scoring the held-out images: each exactly once."""

    batch_size: int = 256
    """Images per step, over all devices. It changes speed, never the result."""
    image_size: int | None = None
    """Height and width at test; None: `data.image_size`. Where it differs, a mean per pixel is averaged to one colour."""
    resize: int | None = 256
    """Shorter side before the centre crop; None takes images as they are."""
    crop_fraction: float | None = None
    """In place of `resize`: the side of the centre crop as a share of the shorter side (224 / 256 = 0.875)."""
    every: int = 5_000
    """Steps between evaluations; there is always one after the last step. 0: only that one."""
    precise_images: int = 0
    """Score the last step a second time with batch-norm statistics of so many training images, the authors' "strict average"
    (`resnet_jax.evaluation.precise`); in metrics.jsonl as split 'precise', beside the plain score. 0: do not."""


@dataclasses.dataclass
class CheckpointConfig(Section):
    """What is kept on disk."""

    every: int = 5_000
    """Steps between checkpoints; there is always one after the last step and one at a stop. 0: only those."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 1
    """Checkpoints kept for their top-1 accuracy at evaluation (for use elsewhere: results report the last step)."""


@dataclasses.dataclass
class LoggingConfig(Section):
    """What is shown and written."""

    every: int = 100
    """Steps that one row of training metrics sums over."""
    tensorboard: bool = True
    """Write TensorBoard event files beside metrics.jsonl."""
    curves: bool = True
    """Draw curves.png in the workdir after every evaluation."""


@dataclasses.dataclass
class TrainConfig(Section):
    """One experiment."""

    steps: int = 600_000
    """Updates in all."""
    batch_size: int = 256
    """Images per update, over all devices and hosts."""
    init: str | None = None
    """Start from published weights, FORMAT:PATH (`resnet_jax.weights.presets`), such as torchvision:resnet50.pth. A
    checkpoint in the workdir goes first."""
    init_head: bool = True
    """Take the last layer of `init` too; False starts it afresh, for other classes."""
    seed: int = 0
    """Of the initial weights, the order of the data and its augmentation."""
    devices: int | None = None
    """Use the first so many devices; None: all."""
    deterministic: bool = False
    """On GPUs, only operations with reproducible results (slower). CPU and TPU are reproducible anyway."""
    matmul_precision: str = "default"
    """Of float32 products on accelerators: default (TF32 or bfloat16 passes, fast), high or highest (full float32)."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    batch_norm: BatchNormConfig = dataclasses.field(default_factory=BatchNormConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)

    def test_size(self) -> int:
        """Height and width of the network's input at test."""
        return self.evaluation.image_size or self.data.image_size

    def test_resize(self, size: int | None = None) -> int | None:
        """Shorter side before a centre crop of `size` (None: `test_size()`); None: images are taken as they are."""
        if self.evaluation.crop_fraction is None:
            return self.evaluation.resize
        return int((size or self.test_size()) / self.evaluation.crop_fraction)


def unknown_field(where: str, name: str, valid: list[str]) -> str:
    """One line that names the nearest valid field."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(valid)}"
    return f"{where} has no field {name!r}; {hint}"


def flatten(config: Section, prefix: str = "") -> dict[str, Any]:
    """All settings as {'model.name': 'resnet50', ...}."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Section):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat


def to_json(config: TrainConfig) -> str:
    """The config as JSON text, fields in order."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def _from_dict(cls: type, values: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    section = cls()
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected fields, found {values!r}")
    for name, value in values.items():
        if name not in hints:
            raise UserError(unknown_field(where, name, list(hints)) + " (written by another version of resnet_jax?)")
        if isinstance(hints[name], type) and issubclass(hints[name], Section):
            value = _from_dict(hints[name], value, f"{where}: {name}")
        setattr(section, name, tuple(value) if isinstance(value, list) else value)
    return section


def load(path: pathlib.Path) -> TrainConfig:
    """Reads a config that `to_json` wrote; mutable, not yet validated."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a stored config ({error})") from error
    return _from_dict(TrainConfig, values, str(path))


def resolved(config: TrainConfig, num_classes: int) -> TrainConfig:
    """A copy in which `model.num_classes` is the number that the data has, frozen: what is stored with the run."""
    copy = _from_dict(TrainConfig, dataclasses.asdict(config), "config")
    copy.model.num_classes = num_classes
    copy.freeze()
    return copy
