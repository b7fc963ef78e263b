"""Optimizers by name, made of optax's parts."""

from typing import Any

import jax
import optax

from resnet_jax.config import OptimizerConfig
from resnet_jax.training.schedules import Schedule


def decay_mask(params: Any, which: str) -> Any:
    """Which parameters decay, as a tree of booleans.

    'kernels': convolution and dense weights only, as in the paper (by fb.resnet.torch's README); 'all': every one.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: which == "all" or path[-1].key == "kernel", params)


def make_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum m and weight decay d, for the gradient g of the loss.

    sgd_caffe (the authors' framework):  v = m v + lr (g + d w);  w = w - v
    sgd (PyTorch):                       v = m v + (g + d w);     w = w - lr v

    The two are the same until the rate changes; then the first keeps the old rate in its velocity for a while.
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=lambda params: decay_mask(params, config.decay_mask))
    scale = optax.scale_by_learning_rate(schedule)
    momentum = optax.trace(config.momentum, nesterov=config.nesterov)
    parts = (scale, momentum) if config.name == "sgd_caffe" else (momentum, scale)
    return optax.chain(decay, *parts)
