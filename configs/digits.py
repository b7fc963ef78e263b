"""Handwritten digits (scikit-learn's 1,797 images of 8x8), a ResNet in the manner of section 4.2.

Command:         make train, or python train.py --config=configs/digits.py --workdir=runs/digits
Hardware:        any; a laptop's CPU will do
Expected time:   under a minute on two CPU cores (results/README.md)
Expected result: 99.4 % top-1 accuracy on the held-out fifth, 358 of 360; 98.3 and 98.9 % with seeds 1
                 and 2 (rounding differs between machines, and with it an image or two) (results/README.md)
"""

from resnet_jax import recipes
from resnet_jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = recipes.paper_cifar10("cifar_resnet20")
    config.steps = 1500
    config.batch_size = 64
    config.schedule.boundaries = (900, 1300)
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.augment = "pad_crop_no_flip"  # a mirrored digit is no digit
    config.data.pad = 1
    config.evaluation.batch_size = 360
    config.evaluation.every = 250
    config.checkpoint.every = 250
    config.logging.every = 50
    return config
