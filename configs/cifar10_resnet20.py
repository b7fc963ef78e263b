"""CIFAR-10, ResNet-20, the paper's recipe (section 4.2, Table 6).

Command:         python train.py --config=configs/cifar10_resnet20.py --config.data.root=PATH
Hardware:        any GPU; a CPU for shortened runs
Expected time:   full schedule: not measured; 5,000 steps on two CPU cores: about an hour
                 (results/README.md)
Expected result: 8.75 % test error (Table 6 of the paper); ours is not measured yet

PATH holds cifar-10-batches-bin or cifar-10-batches-py. Batch norm is over the whole batch of 128; the authors' two GPUs
normalised 64 images each: --config.batch_norm.group_size=64.

The ResNet-20 that akamaster/pytorch_resnet_cifar10 publishes, scored: python eval.py --config=configs/cifar10_resnet20.py
--config.data.root=PATH --config.init=akamaster:resnet20-12fca82f.th --config.model.zero_channels=both
--config.data.mean=imagenet --config.data.std=imagenet. Result: 9173 of 10,000 right (results/README.md).
"""

from resnet_jax import recipes
from resnet_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return recipes.paper_cifar10("cifar_resnet20")
