"""How a network is tested: one centre view of every image, each image exactly once."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from resnet_jax import parallel
from resnet_jax.config import TrainConfig
from resnet_jax.data import augment, pipeline
from resnet_jax.data.normalize import normalize
from resnet_jax.data.sources import Source
from resnet_jax.errors import Stopped
from resnet_jax.evaluation.metrics import Scores, batch_scores
from resnet_jax.models.resnet import ResNet


def compile_eval_step(model: ResNet, pad: int, mesh: Mesh) -> Callable[..., dict[str, jax.Array]]:
    """A function of (params, batch_stats, pixels, batch) that gives the sums of `batch_scores` over one batch."""

    def run(params: Any, batch_stats: Any, pixels: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict:
        images = normalize(batch, pixels["mean"], pixels["std"], pad)
        logits = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
        scores = batch_scores(logits, batch["label"], batch["mask"])
        if "skipped" in batch:
            scores["skipped"] = batch["skipped"].sum()
        if "stop" in batch:
            scores["stop"] = batch["stop"].max()
        return scores

    rep = parallel.replicated(mesh)
    return jax.jit(run, in_shardings=(rep, rep, rep, parallel.by_batch(mesh)), out_shardings=rep)


def padded_batch(config: TrainConfig, images: int, mesh: Mesh) -> int:
    """The size of the batches that `evaluate` scores so many images in: one that the devices can share."""
    return parallel.round_up(min(config.evaluation.batch_size, images), mesh)


def evaluate(
    eval_step: Callable[..., dict[str, jax.Array]],
    state: Any,
    source: Source,
    config: TrainConfig,
    mesh: Mesh,
    *,
    progress: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    skipped: pipeline.Skipped | None = None,
) -> Scores:
    """Scores every image of `source` once, whatever the batch size and the number of devices.

    With `data.on_error='skip'`, broken images are left out, and the scores say how many.

    Args:
      eval_step: `compile_eval_step` of the network, or `training.compiled.compile_evaluation`.
      state: has params, batch_stats and pixels, replicated over the mesh.
      source: the images.
      config: the protocol (`evaluation`, `data`); a batch that the devices cannot share is padded.
      mesh: of all devices.
      progress: show a bar.
      should_stop: polled between batches.
      skipped: names the broken images that this process met; None: on the standard output.

    Raises:
      UserError: an image is broken and `data.on_error` is 'raise', or all of them are.
      Stopped: `should_stop` said so; nothing is lost, since evaluating changes nothing.
    """
    batch_size = padded_batch(config, len(source), mesh)
    transform = augment.eval_transform(config)
    skip = config.data.on_error == "skip"
    batches = pipeline.EvalBatches(source, transform, batch_size, parallel.local_rows(mesh, batch_size), skip)
    scores, pending = Scores(), None
    with (
        jax.transfer_guard("disallow"),
        pipeline.iterate(batches, 0, config.data, skipped or pipeline.Skipped()) as iterator,
        tqdm(total=len(source), unit="img", desc="evaluate", leave=False, disable=not progress) as bar,
    ):
        for batch in iterator:
            stop = should_stop()
            if stop and jax.process_count() == 1:
                raise Stopped("stopped during an evaluation")
            batch = parallel.with_wish(batch, stop, batch["label"].shape)
            result = eval_step(state.params, state.batch_stats, state.pixels, parallel.put_batch(batch, mesh, batch_size))
            parallel.one_at_a_time(result, mesh)
            # Fetch one batch late, so that the next one is loaded and queued meanwhile.
            if pending is not None:
                pending = jax.device_get(pending)
                if pending.pop("stop", 0):  # all processes see it after the same batch
                    raise Stopped("stopped during an evaluation")
                scores.add(pending)
                bar.update(scores.count - bar.n)
            pending = result
        scores.add(jax.device_get(pending))
        bar.update(scores.count - bar.n)
    if scores.count + scores.skipped != len(source):
        raise RuntimeError(f"scored {scores.count} of {len(source)} images: this is a bug, please report it")
    return scores
