"""ImageNet, ResNet-50, procedure A2 of "ResNet strikes back" (Wightman, Touvron, Jegou 2021, arXiv 2110.00476, Table 2).

Command:         python train.py --config=configs/resnet50_modern.py --config.data.root=PATH
Hardware:        8 GPUs or a TPU slice (2,048 images per step); smaller machines with --config.accumulate=N
Expected time:   not measured yet
Expected result: 20.2 % top-1 error (79.8 % right), one centre crop (its Table 1; not measured by us yet)

PATH holds train/<wnid>/*.JPEG and val/<wnid>/*.JPEG. 300 epochs with LAMB at 5e-3 for 2,048 images and decay 0.02, a cosine
after 5 epochs of warm-up, gradients clipped to a norm of 1 (timm's LAMB does so by default), binary cross-entropy with
targets above 0.2 taken as 1, mixup 0.1 or CutMix 1.0, RandAugment of magnitude 7, repeated augmentation 3, stochastic depth
0.05; tested at 95 % of the shorter side. There, an epoch shows a third of the images three times; here, it shows each of
them three times, so 100 are 300 of theirs. The moving average of the weights is not in the procedure; it costs a copy of
the weights and is scored beside them. Small things differ: RandAugment here has no "std 0.5, increasing" (timm's
m7-mstd0.5-inc1) and torchvision's magnitudes; the first rate of the warm-up, 1e-6, is ours.
"""

from resnet_jax import recipes
from resnet_jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = recipes.paper_imagenet("resnet50")
    config.unit = "epochs"
    config.steps = 100  # 300 in the paper's count: data.repeats is 3
    config.evaluation.every = 5
    config.checkpoint.every = 1
    config.batch_size = 2048
    config.model.stride_placement = "3x3"
    config.model.max_pool = "torch"
    config.model.init_fan = "fan_out"
    config.model.zero_init_last = True
    config.model.drop_path = 0.05
    config.data.augment = "inception_crop"
    config.data.resample = "bicubic"
    config.data.lighting = 0.0
    config.data.std = "imagenet"
    config.data.policy = "randaugment"
    config.data.policy_count = 2
    config.data.policy_magnitude = 7
    config.data.repeats = 3
    config.mix.mixup_alpha = 0.1
    config.mix.cutmix_alpha = 1.0
    config.loss.name = "bce_mean"
    config.loss.target_threshold = 0.2
    config.optimizer.name = "lamb"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.weight_decay = 0.02
    config.optimizer.epsilon = 1e-6
    config.optimizer.clip_norm = 1.0
    config.schedule.name = "cosine"
    config.schedule.final_learning_rate = 1e-6
    config.schedule.warmup = "linear"
    config.schedule.warmup_steps = 5 / 3
    config.schedule.warmup_learning_rate = 1e-6
    config.average.decay = 0.9999
    config.average.ramp = True
    config.evaluation.crop_fraction = 0.95
    return config
