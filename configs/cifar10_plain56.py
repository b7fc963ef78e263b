"""CIFAR-10, the plain twin of ResNet-56, the paper's recipe (section 4.2, Fig. 6 left).

Command:         python train.py --config=configs/cifar10_plain56.py --config.data.root=PATH
Hardware:        any GPU
Expected time:   not measured yet
Expected result: a curve in Fig. 6 (left) of the paper, which tabulates no number: the deeper the plain network, the
                 higher its training error. Ours is not measured yet

PATH holds cifar-10-batches-bin or cifar-10-batches-py. Batch norm is over the whole batch of 128; the authors' two GPUs
normalised 64 images each: --config.batch_norm.group_size=64.
"""

from resnet_jax import recipes
from resnet_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return recipes.paper_cifar10("cifar_plain56")
