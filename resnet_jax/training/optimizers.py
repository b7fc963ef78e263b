"""Optimizers by name, made of optax's parts."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.config import OptimizerConfig


def decay_mask(params: Any, which: str) -> Any:
    """Which parameters decay, as a tree of booleans.

    'kernels': convolution and dense weights only, as in the paper (by fb.resnet.torch's README); 'all': every one.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: which == "all" or path[-1].key == "kernel", params)


def scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the `learning_rate` given to `update`, which may depend on more than the step.

    Its state counts the updates, in the form of `optax.scale_by_schedule`.
    """

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: jax.Array, **_: Any) -> tuple:
        updates = jax.tree.map(lambda u: jnp.asarray(-learning_rate, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_layer_trust(coefficient: float = 1.0) -> optax.GradientTransformation:
    """`optax.scale_by_trust_ratio` layer by layer: the arrays that `stack_blocks` made hold one layer per row."""
    trust = optax.scale_by_trust_ratio(trust_coefficient=coefficient)

    def one(update: jax.Array, param: jax.Array) -> jax.Array:
        return trust.update(update, trust.init(param), param)[0]

    def scale(path: tuple, update: jax.Array, param: jax.Array) -> jax.Array:
        stacked = any(entry.key == "blocks" for entry in path)
        return (jax.vmap(one) if stacked else one)(update, param)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params))


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizer that a config names, for the gradient g of the loss; `update` wants `learning_rate`, lr.

    With momentum m, weight decay d and, layer by layer, the trust ratio T(u) = |w| / |u| (1 where either is zero):

    sgd_caffe (the authors' framework):  v = m v + lr (g + d w);  w = w - v
    sgd (PyTorch):                       v = m v + (g + d w);     w = w - lr v
    lars (arXiv 1708.03888):             u = g + d w;  v = m v + lr c T(u) u;  w = w - v    (c: trust_coefficient)
    adamw (arXiv 1711.05101):            a = Adam's direction, bias corrected;  w = w - lr (a + d w)
    lamb (arXiv 1904.00962):             u = a + d w;  w = w - lr T(u) u

    sgd and sgd_caffe are the same until the rate changes; then the second keeps the old rate in its velocity for a while.
    With Nesterov momentum, the step is g' + m v in place of v, for the g' that was added to v. d and T are for the
    parameters of `decay_mask` only. With `clip_norm`, all of g is first scaled to at most that norm.
    """

    def mask(params: Any) -> Any:
        return decay_mask(params, config.decay_mask)

    decay = optax.add_decayed_weights(config.weight_decay, mask=mask)
    momentum = optax.trace(config.momentum, nesterov=config.nesterov)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    trust = optax.masked(scale_by_layer_trust(config.trust_coefficient if config.name == "lars" else 1.0), mask)
    parts = {
        "sgd_caffe": (decay, scale_by_rate(), momentum),
        "sgd": (decay, momentum, scale_by_rate()),
        "lars": (decay, trust, scale_by_rate(), momentum),
        "adamw": (adam, decay, scale_by_rate()),
        "lamb": (adam, decay, trust, scale_by_rate()),
    }[config.name]
    clip = () if config.clip_norm is None else (optax.clip_by_global_norm(config.clip_norm),)
    return optax.chain(*clip, *parts)
