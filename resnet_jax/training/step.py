"""One update: a pure function, compiled over a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from resnet_jax import parallel
from resnet_jax.data.mix import Mixer
from resnet_jax.data.normalize import normalize
from resnet_jax.data.resident import Augmenter
from resnet_jax.models.resnet import ResNet
from resnet_jax.training.schedules import Schedule
from resnet_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def loss_and_updates(model: ResNet, params: Any, batch_stats: Any, images: jax.Array, targets: jax.Array) -> tuple:
    """Mean cross-entropy of a training batch, in at least float32, with (new batch statistics, logits).

    `targets` are class numbers, int32 `[batch]`, or the classes' shares, `[batch, classes]`.
    """
    logits, updated = model.apply(
        {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
    )
    if targets.ndim == 1:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    else:
        losses = optax.softmax_cross_entropy(logits, targets.astype(logits.dtype))
    return losses.mean(), (updated["batch_stats"], logits)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: ResNet,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    pad: int,
    mixer: Mixer | None = None,
) -> tuple[TrainState, Metrics]:
    """One update with one global batch.

    Args:
      state: before it.
      batch: image uint8 `[batch, size, size, channels]`, label int32 `[batch]`, and what the augmentation left to do in
        float (`data.normalize`).
      model, optimizer, schedule: of the run.
      pad: pixels of padding that `window` refers to.
      mixer: mixes the batch and softens its targets, if given.

    Returns:
      The state after it, and the batch's metrics before it: loss (mean), correct and count (images; correct by the label of
      the image itself, where another is mixed in), learning_rate, and the parameters' norm after it.
    """
    images, targets = normalize(batch, state.pixels["mean"], state.pixels["std"], pad), batch["label"]
    if mixer is not None:
        images, targets = mixer(images, targets, state.step, model.num_classes)

    def loss_of(params: Any) -> tuple:
        return loss_and_updates(model, params, state.batch_stats, images, targets)

    (loss, (batch_stats, logits)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": loss,
        "correct": (logits.argmax(-1) == batch["label"]).sum(),
        "count": jnp.int32(len(logits)),
        "parameter_norm": optax.tree.norm(params),
        "learning_rate": schedule(state.step),
    }
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return new_state, metrics


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    pad: int,
    mixer: Mixer | None = None,
) -> Step:
    """`train_step` of a state and a batch alone."""
    return functools.partial(train_step, model=model, optimizer=optimizer, schedule=schedule, pad=pad, mixer=mixer)


def compile_train_step(step: Step, mesh: Mesh) -> Step:
    """A step over a mesh: the batch split, the state replicated and donated (do not use it afterwards)."""
    rep = parallel.replicated(mesh)
    return jax.jit(step, in_shardings=(rep, parallel.by_batch(mesh)), out_shardings=(rep, rep), donate_argnums=0)


def compile_resident_steps(step: Step, augment: Augmenter, mesh: Mesh, most: int) -> Callable[..., tuple]:
    """Several steps in one program, with the data set on the device.

    Returns:
      A function of the state (donated), the data set (`resident.load`, replicated), indices int32 `[most, batch]`
      (split over the mesh along the batch) and the number of steps to make, int32, at most `most`: the state after them, and
      their metrics, each `[most]`, of which the first ones count.
    """
    rep = parallel.replicated(mesh)

    def one(state: TrainState, store: Batch, indices: jax.Array) -> tuple[TrainState, Metrics]:
        batch = augment(store, indices, state.step)
        return step(state, jax.lax.with_sharding_constraint(batch, parallel.by_batch(mesh)))

    def run(state: TrainState, store: Batch, indices: jax.Array, count: jax.Array) -> tuple[TrainState, Metrics]:
        if most == 1:  # no loop: in one, XLA's CPU backend runs convolutions many times slower
            state, metrics = one(state, store, indices[0])
            return state, jax.tree.map(lambda value: value[None], metrics)

        def body(k: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = one(carry[0], store, indices[k])
            return state, jax.tree.map(lambda values, value: values.at[k].set(value), carry[1], metrics)

        shapes = jax.eval_shape(one, state, store, indices[0])[1]
        metrics = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, metrics))

    return jax.jit(run, in_shardings=(rep, rep, parallel.by_column(mesh), rep), out_shardings=(rep, rep), donate_argnums=0)
