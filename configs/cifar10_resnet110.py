"""CIFAR-10, ResNet-110, the paper's recipe (section 4.2, Table 6).

Command:         python train.py --config=configs/cifar10_resnet110.py --config.data.root=PATH
Hardware:        any GPU
Expected time:   not measured yet
Expected result: 6.43 (best of five; mean 6.61 +- 0.16) % test error (Table 6 of the paper); ours is not measured yet

PATH holds cifar-10-batches-bin or cifar-10-batches-py. Batch norm is over the whole batch of 128; the authors' two GPUs
normalised 64 images each: --config.batch_norm.group_size=64.

Warm-up (section 4.2): rate 0.01 until the training error, here a mean over 100 steps, is below 80 %, "about 400
iterations"; then 0.1.
"""

from resnet_jax import recipes
from resnet_jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = recipes.paper_cifar10("cifar_resnet110")
    config.schedule.warmup = "error"
    return config
