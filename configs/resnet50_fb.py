"""ImageNet, ResNet-50, the recipe of facebookarchive/fb.resnet.torch (opts.lua, train.lua, datasets/imagenet.lua).

Command:         python train.py --config=configs/resnet50_fb.py --config.data.root=PATH
Hardware:        8 GPUs or a TPU slice (256 images per step); one large GPU will do
Expected time:   not measured yet
Expected result: 24.01 % top-1, 7.02 % top-5 error with one centre crop (its README). Ours is not measured yet

PATH holds train/<wnid>/*.JPEG and val/<wnid>/*.JPEG. Differs from the paper's recipe (configs/resnet50.py): Inception crop,
colour jitter beside the lighting, pixels divided by their deviation, bicubic resizing without antialiasing, stride in the
3x3 convolution, padding on all sides of the max pooling, Nesterov momentum, decay on all parameters, fan-out
initialisation, 90 epochs (450,410 steps) with a tenth of the rate after 30 and 60. There, batch norm runs over each GPU's
images: --config.batch_norm.group_size=32 for eight. Small things differ still: epochs are not cut at whole batches; the
aspect ratio is drawn log-uniformly and the cubic kernel is OpenCV's (`resnet_jax.data.resample`).
"""

from resnet_jax import recipes
from resnet_jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = recipes.paper_imagenet("resnet50")
    config.steps = 450_410
    config.schedule.boundaries = (150_137, 300_273)
    config.data.augment = "inception_crop"
    config.data.resample = "bicubic"
    config.data.antialias = False
    config.data.colour_jitter = 0.4
    config.data.std = "imagenet"
    config.model.stride_placement = "3x3"
    config.model.max_pool = "torch"
    config.model.init_fan = "fan_out"
    config.optimizer.name = "sgd"
    config.optimizer.nesterov = True
    config.optimizer.decay_mask = "all"
    return config
