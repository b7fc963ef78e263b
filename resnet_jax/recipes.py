"""The recipes that config files start from. Each returns a fresh, mutable `TrainConfig`."""

from resnet_jax.config import TrainConfig


def paper_imagenet(model: str) -> TrainConfig:
    """Section 3.4: 600k iterations of 256 images, rate 0.1 divided by 10 when the error plateaus, decay 1e-4.

    Scale jitter, crop, flip and AlexNet's colour augmentation ("standard color augmentation", std 0.1).

    The paper names no steps for the drops; 150k, 300k and 450k are our reading of its Fig. 4. Batch norm is over the
    global batch; `batch_norm.group_size=32` is what the authors' eight GPUs did.
    """
    config = TrainConfig()
    config.model.name = model
    config.data.lighting = 0.1
    return config


def paper_cifar10(model: str) -> TrainConfig:
    """Section 4.2: 64k iterations of 128 images, rate 0.1 divided by 10 at 32k and 48k, decay 1e-4, all 50k images.

    Batch norm is over the global batch; `batch_norm.group_size=64` is what the authors' two GPUs did.
    """
    config = TrainConfig(steps=64_000, batch_size=128)
    config.model.name = model
    config.data.source = "cifar10"
    config.data.image_size = 32
    config.data.augment = "pad_crop"
    config.data.mean = "pixel"
    config.schedule.boundaries = (32_000, 48_000)
    config.evaluation.batch_size = 1000
    config.evaluation.resize = None
    config.evaluation.every = 1_000
    config.checkpoint.every = 1_000
    return config
