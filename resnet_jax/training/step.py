"""One update: a pure function, compiled over a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from resnet_jax import parallel
from resnet_jax.config import AverageConfig, LossConfig, TrainConfig
from resnet_jax.data.mix import Mixer, mixer
from resnet_jax.data.normalize import normalize
from resnet_jax.data.resident import Augmenter
from resnet_jax.models import formulation
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stochastic_depth import StochasticDepth, stochastic_depth
from resnet_jax.training import averages, loss_scale
from resnet_jax.training.losses import losses
from resnet_jax.training.schedules import Schedule
from resnet_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a step does besides the paper's recipe; by default nothing.

    Attributes:
      mixer: mixes the batch and softens its targets, if given.
      stochastic_depth: draws the blocks to skip, if given.
      loss: which.
      average: how the average moves, if the state has one.
      accumulate: micro-batches.
    """

    mixer: Mixer | None = None
    stochastic_depth: StochasticDepth | None = None
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    average: AverageConfig = dataclasses.field(default_factory=AverageConfig)
    accumulate: int = 1


def step_options(config: TrainConfig) -> StepOptions:
    """What a config asks for."""
    return StepOptions(mixer(config), stochastic_depth(config), config.loss, config.average, config.accumulate)


def gradients_of(
    model: ResNet, state: TrainState, images: jax.Array, targets: jax.Array, branch_scale: Any, options: StepOptions
) -> tuple[Any, tuple]:
    """The gradient of the mean loss of a (micro-)batch, times the loss scale if there is one.

    Args:
      model: of the run.
      state: has params, batch_stats and loss_scale.
      images: `[batch, height, width, channels]`, normalised.
      targets: class numbers, int32 `[batch]`, or the classes' shares, `[batch, classes]`.
      branch_scale: `[batch, blocks]` or None (`models.stochastic_depth`).
      options: has the loss.

    Returns:
      The gradient, in float32, and (mean loss in at least float32, new batch statistics, logits).
    """

    def loss_of(params: Any) -> tuple:
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            branch_scale=branch_scale,
            mutable=["batch_stats"],
        )
        loss = losses(logits, targets, options.loss).mean()
        scaled = loss if state.loss_scale is None else loss * state.loss_scale.scale
        return scaled, (loss, updated["batch_stats"], logits)

    return jax.grad(loss_of, has_aux=True)(state.params)


def accumulated_gradients(
    model: ResNet, state: TrainState, images: jax.Array, targets: jax.Array, branch_scale: Any, options: StepOptions
) -> tuple[Any, tuple]:
    """`gradients_of` a batch, computed in `options.accumulate` micro-batches, of which j has rows j, j + accumulate, ...

    So every device has the same share of each, and none of them depends on the number of devices.
    """
    count = options.accumulate
    if count == 1:
        return gradients_of(model, state, images, targets, branch_scale, options)

    def micro(state: TrainState, part: tuple) -> tuple:
        gradients, (loss, batch_stats, logits) = gradients_of(model, state, *part, options)
        return state.replace(batch_stats=batch_stats), (gradients, loss, logits)

    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), (images, targets, branch_scale))
    if formulation.on_cpu():  # there, convolutions inside a loop are many times slower
        results = []
        for index in range(count):
            state, result = micro(state, jax.tree.map(lambda x, index=index: x[index], parts))
            results.append(result)
        gradients, loss, logits = jax.tree.map(lambda *each: jnp.stack(each), *results)
        gradients, loss = jax.tree.map(lambda x: x.mean(0), (gradients, loss))
    else:

        def body(carry: tuple, part: tuple) -> tuple:
            state, sums = carry
            state, (*result, logits) = micro(state, part)
            return (state, jax.tree.map(jnp.add, sums, tuple(result))), logits

        shapes = jax.eval_shape(micro, state, jax.tree.map(lambda x: x[0], parts))[1][:2]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (state, sums), logits = jax.lax.scan(body, (state, zeros), parts)
        gradients, loss = jax.tree.map(lambda x: x / count, sums)
    logits = logits.swapaxes(0, 1).reshape(-1, logits.shape[-1])
    return gradients, (loss, state.batch_stats, logits)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: ResNet,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    pad: int,
    options: StepOptions,
) -> tuple[TrainState, Metrics]:
    """One update with one global batch.

    Args:
      state: before it.
      batch: image uint8 `[batch, size, size, channels]`, label int32 `[batch]`, and what the augmentation left to do in
        float (`data.normalize`).
      model, optimizer, schedule: of the run.
      pad: pixels of padding that `window` refers to.
      options: what else it does.

    Returns:
      The state after it, and the batch's metrics before it: loss (mean), correct and count (images; correct by the label of
      the image itself, where another is mixed in), learning_rate, and the parameters' norm after it; with several processes
      also stop, whether any of them wants to. With a loss scale (float16), a step whose loss or gradient is not finite
      changes nothing but the step counter and the scale; skipped is 1 then, and skipped_in_a_row the number of such steps
      since the last good one.
    """
    images, targets = normalize(batch, state.pixels["mean"], state.pixels["std"], pad), batch["label"]
    if options.mixer is not None:
        images, targets = options.mixer(images, targets, state.step, model.num_classes)
    depth = options.stochastic_depth
    branch_scale = None if depth is None else depth(state.step, len(images))
    gradients, (loss, batch_stats, logits) = accumulated_gradients(model, state, images, targets, branch_scale, options)
    if state.loss_scale is not None:
        gradients = jax.tree.map(lambda g: g / state.loss_scale.scale, gradients)

    rate = schedule(state.step, state.schedule)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, learning_rate=rate)
    params = optax.apply_updates(state.params, updates)
    correct, count = (logits.argmax(-1) == batch["label"]).sum(), len(logits)
    new_state = state.replace(
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        average=averages.update(options.average, state.average, params, batch_stats, state.step),
        schedule=schedule.observe(state.schedule, loss, 1 - correct.astype(jnp.float32) / count),
    )
    metrics = {"loss": loss, "correct": correct, "count": jnp.int32(count), "learning_rate": rate}
    if state.loss_scale is not None:
        finite = loss_scale.all_finite((loss, gradients))
        scale = loss_scale.update(state.loss_scale, finite)
        new_state = loss_scale.choose(finite, new_state, state).replace(loss_scale=scale)
        metrics |= {"skipped": (~finite).astype(jnp.int32), "skipped_in_a_row": scale.skipped}
    metrics["parameter_norm"] = optax.tree.norm(new_state.params)
    if "stop" in batch:
        metrics["stop"] = batch["stop"].max()
    return new_state.replace(step=state.step + 1), metrics


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    model: ResNet,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    pad: int,
    options: StepOptions | None = None,
) -> Step:
    """`train_step` of a state and a batch alone."""
    options = options or StepOptions()
    return functools.partial(train_step, model=model, optimizer=optimizer, schedule=schedule, pad=pad, options=options)


def compile_train_step(step: Step, mesh: Mesh) -> Step:
    """A step over a mesh: the batch split, the state replicated and donated (do not use it afterwards)."""
    rep = parallel.replicated(mesh)
    return jax.jit(step, in_shardings=(rep, parallel.by_batch(mesh)), out_shardings=(rep, rep), donate_argnums=0)


def compile_resident_steps(step: Step, augment: Augmenter, mesh: Mesh, most: int) -> Callable[..., tuple]:
    """Several steps in one program, with the data set on the device.

    Returns:
      A function of the state (donated), the data set (`resident.load`, replicated), rows (int32 `[most, batch]`, split over
      the mesh along the batch: index, and stop if processes ask) and the number of steps to make, int32, at most `most`: the
      state after them, and their metrics, each `[most]`, of which the first ones count.
    """
    rep = parallel.replicated(mesh)

    def one(state: TrainState, store: Batch, rows: Batch) -> tuple[TrainState, Metrics]:
        batch = augment(store, rows["index"], state.step) | {name: rows[name] for name in rows if name != "index"}
        return step(state, jax.lax.with_sharding_constraint(batch, parallel.by_batch(mesh)))

    def run(state: TrainState, store: Batch, rows: Batch, count: jax.Array) -> tuple[TrainState, Metrics]:
        def row(k: int | jax.Array) -> Batch:
            return jax.tree.map(lambda values: values[k], rows)

        if most == 1:  # no loop: in one, XLA's CPU backend runs convolutions many times slower
            state, metrics = one(state, store, row(0))
            return state, jax.tree.map(lambda value: value[None], metrics)

        def body(k: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = one(carry[0], store, row(k))
            return state, jax.tree.map(lambda values, value: values.at[k].set(value), carry[1], metrics)

        shapes = jax.eval_shape(one, state, store, row(0))[1]
        metrics = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, metrics))

    return jax.jit(run, in_shardings=(rep, rep, parallel.by_column(mesh), rep), out_shardings=(rep, rep), donate_argnums=0)
