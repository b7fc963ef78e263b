"""Everything that a run can be told, as typed dataclasses.

A config file (`configs/*.py`) has a function `get_config()` that returns a `TrainConfig`. Flags then change single
fields, `--config.optimizer.learning_rate=0.2`; afterwards `validation.validate` checks all of it and freezes it.

Order of precedence: the defaults below, then the config file, then the flags.

Durations are counted in `unit`: training steps (one step is one update with one global batch), epochs or examples.
Sizes are in pixels.
"""

import dataclasses
import json
import pathlib

from etils import epath

from resnet_jax import durations
from resnet_jax.errors import UserError
from resnet_jax.section import Section, from_dict


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
    """Of activations: float32, bfloat16 or float16 (with dynamic loss scaling: `training.loss_scale`). Parameters, the
    statistics of batch norm, logits and loss stay in float32."""
    drop_path: float = 0.0
    """Stochastic depth (Huang et al. 2016; not in the paper): in training, each image skips the last residual branch with
    this probability, and divides what is not skipped by the probability to stay. Nothing is skipped at test."""
    drop_path_rule: str = "linear"
    """Of L blocks, the l-th is skipped with probability drop_path * l / L (linear: Huang et al.) or drop_path (constant)."""
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
    placement: str = "host"
    """Where the training images are: host (loaded batch by batch), or device: all of them, augmented there, for sets as
    small as CIFAR-10 (cifar10, digits or synthetic, with pad_crop, pad_crop_no_flip or none). The distribution is the same,
    the draws are others."""
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
class LossConfig(Section):
    """What is minimised: its mean over the images of a batch."""

    name: str = "cross_entropy"
    """cross_entropy (softmax: the paper), or one binary cross-entropy per class, averaged (bce_mean: PyTorch's and timm's
    default) or summed (bce_sum) over the classes. Evaluation always reports the softmax cross-entropy."""
    target_threshold: float | None = None
    """For bce: targets above it become 1, others 0 ("ResNet strikes back": 0.2 with mixup and cutmix); None: as they are."""


@dataclasses.dataclass
class OptimizerConfig(Section):
    """How the parameters follow the gradients (section 3.4 by default; `training.optimizers` has the formulas)."""

    name: str = "sgd_caffe"
    """sgd_caffe: v = m*v + lr*g, w = w - v, as the authors trained; sgd: v = m*v + g, w = w - lr*v, as in PyTorch. They
    differ whenever the learning rate changes. Or lars (You et al. 2017), lamb (You et al. 2019), adamw."""
    learning_rate: float = 0.1
    """Before any drop, after any warm-up. It is never scaled with the batch size behind your back."""
    learning_rate_per: int | None = None
    """Every learning rate of the config is meant for so many images per update, and is multiplied by batch_size / this
    (Goyal et al. 2017: 256). The first lines of the log say so. None: the rates are what they are."""
    momentum: float = 0.9
    """Of sgd_caffe, sgd and lars."""
    nesterov: bool = False
    """Nesterov momentum (sgd and lars)."""
    weight_decay: float = 1e-4
    """sgd_caffe, sgd and lars: weight_decay * parameter is added to the gradient; lamb and adamw: to the update."""
    decay_mask: str = "kernels"
    """What decays: kernels (convolution and dense weights) or all (batch-norm scales and biases too). In lars and lamb the
    others are not scaled by a trust ratio either."""
    beta1: float = 0.9
    """Decay of the gradients' running mean (lamb, adamw)."""
    beta2: float = 0.999
    """Decay of their squares' running mean (lamb, adamw)."""
    epsilon: float = 1e-8
    """Added to the root of that (lamb, adamw)."""
    trust_coefficient: float = 1e-3
    """Of lars: a layer's step is this * |parameters| / |gradient with decay| * gradient."""
    clip_norm: float | None = None
    """Gradients of a larger global norm are scaled down to it, before weight decay; None: never."""


@dataclasses.dataclass
class ScheduleConfig(Section):
    """The learning rate over the run: `name` says how it falls, `warmup` how it begins."""

    name: str = "step"
    """step (the paper: times `factor` at each boundary), constant, or, from the end of the warm-up to the end of the run,
    cosine, polynomial or linear; or plateau (times `factor` when training no longer improves)."""
    boundaries: tuple[float, ...] = (150_000, 300_000, 450_000)
    """step: when the rate is multiplied by `factor`; the update number `boundary` (from 0) is the first with it."""
    factor: float = 0.1
    """step, plateau: what the rate is multiplied by."""
    final_learning_rate: float = 0.0
    """cosine, polynomial, linear: the rate that is reached at the end; plateau: the lowest."""
    power: float = 2.0
    """polynomial: (1 - share of the way)^power."""
    plateau_metric: str = "loss"
    """plateau: what must fall, the training loss or the training error."""
    plateau_window: float = 5_000
    """plateau: duration that one value of the metric is averaged over."""
    plateau_patience: int = 2
    """plateau: so many values without improvement make the rate drop."""
    plateau_threshold: float = 0.01
    """plateau: what counts as improvement, as a share of the best value so far."""
    warmup: str = "none"
    """none; constant (at `warmup_learning_rate`) or linear (from it to `optimizer.learning_rate`) for `warmup_steps`; or
    error (at it until the training error is below `warmup_error`, then never again: section 4.2, 110 layers)."""
    warmup_steps: float = 0.0
    """constant, linear: duration of the warm-up; epochs may be fractions."""
    warmup_learning_rate: float = 0.01
    warmup_error: float = 0.8
    """error: training error in [0, 1] below which the warm-up ends."""
    warmup_error_window: int = 100
    """error: the training error is the mean over the last so many steps; before there are so many, it goes on."""


@dataclasses.dataclass
class AverageConfig(Section):
    """An exponential moving average of the parameters and the batch-norm statistics, kept beside them."""

    decay: float = 0.0
    """Share of the average that is kept at each step, such as 0.9999; 0: no average."""
    ramp: bool = False
    """Start with a smaller one, min(decay, (1 + step) / (10 + step)), so that the initial weights are soon forgotten."""
    evaluate: str = "beside"
    """beside: each evaluation scores the weights and the average (ema_top1, ...); instead: the average only, as top1."""


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
    """Time between evaluations; there is always one after the last step. 0: only that one."""
    precise_images: int = 0
    """Score the last step a second time with batch-norm statistics of so many training images, the authors' "strict average"
    (`resnet_jax.evaluation.precise`); in metrics.jsonl as split 'precise', beside the plain score. 0: do not."""


@dataclasses.dataclass
class CheckpointConfig(Section):
    """What is kept on disk."""

    every: int = 5_000
    """Time between checkpoints; there is always one after the last step and one at a stop. 0: only those."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 1
    """Checkpoints kept for their top-1 accuracy at evaluation (for use elsewhere: results report the last step)."""
    keep_every: int = 0
    """Keep for ever the checkpoints whose step is a multiple of this number of steps; 0: none."""


@dataclasses.dataclass
class LoggingConfig(Section):
    """What is shown and written."""

    every: int = 100
    """Steps that one row of training metrics sums over."""
    tensorboard: bool = True
    """Write TensorBoard event files beside metrics.jsonl."""
    wandb: str | None = None
    """Project of Weights & Biases to log to; needs the package wandb."""
    profile_steps: tuple[int, ...] = ()
    """(first, last): profile these steps, both included, into WORKDIR/profile; (): none. Not the first steps of a run."""
    curves: bool = True
    """Draw curves.png in the workdir after every evaluation."""


@dataclasses.dataclass
class TrainConfig(Section):
    """One experiment."""

    steps: int = 600_000
    """Length of the run."""
    unit: str = "steps"
    """What durations are counted in: `steps`, `schedule.boundaries`, `schedule.warmup_steps`, `schedule.plateau_window`,
    `evaluation.every` and `checkpoint.every`. steps, epochs (of the training set, `data.repeats` times) or examples (images
    trained on). They become whole steps once the data is known, and so they are stored with the run (`durations`)."""
    batch_size: int = 256
    """Images per update, over all devices and hosts."""
    accumulate: int = 1
    """Gradient accumulation: compute an update in so many micro-batches, one after the other, to save memory. Loss and
    gradient are the mean over the batch all the same, but batch norm sees one micro-batch at a time, and its running
    statistics move once for each. Micro-batch j holds images j, j + accumulate, ... of the batch."""
    init: str | None = None
    """Start from published weights, FORMAT:PATH (`resnet_jax.weights.presets`), such as torchvision:resnet50.pth. A
    checkpoint in the workdir goes first."""
    init_head: bool = True
    """Take the last layer of `init` too; False starts it afresh, for other classes."""
    seed: int = 0
    """Of the initial weights, the order of the data and its augmentation."""
    devices: int | None = None
    """Use the first so many devices; None: all."""
    steps_per_dispatch: int | None = None
    """Steps that the device makes in one go with data.placement='device'; None: on CPU 1, elsewhere up to 100. Signals are
    looked at in between."""
    deterministic: bool = False
    """On GPUs, only operations with reproducible results ("potentially slower", says XLA). CPU and TPU are
    reproducible anyway."""
    matmul_precision: str = "default"
    """Of float32 products on accelerators: default (TF32 or bfloat16 passes, fast), high or highest (full float32)."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    batch_norm: BatchNormConfig = dataclasses.field(default_factory=BatchNormConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    average: AverageConfig = dataclasses.field(default_factory=AverageConfig)
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


def to_json(config: TrainConfig) -> str:
    """The config as JSON text, fields in order."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def load(path: pathlib.Path | epath.Path) -> TrainConfig:
    """Reads a config that `to_json` wrote; mutable, not yet validated."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a stored config ({error})") from error
    return from_dict(TrainConfig, values, str(path))


def resolved(config: TrainConfig, num_classes: int, images: int | None = None) -> TrainConfig:
    """A copy in which everything that depends on the data is filled in, frozen: what is stored with the run.

    Args:
      config: validated.
      num_classes: that the data has, for `model.num_classes`.
      images: in the training set; durations become whole steps (`durations.in_steps`). None: they stay as they are.

    Raises:
      UserError: durations that make no sense in steps.
    """
    copy = from_dict(TrainConfig, dataclasses.asdict(config), "config")
    copy.model.num_classes = num_classes
    durations.in_steps(copy, images)
    copy.freeze()
    return copy
