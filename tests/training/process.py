"""One of two processes, four devices each: python -m tests.training.process FOLDER PORT ID VARIANTS

In float64, of each variant it trains 20 steps, keeps a checkpoint of step 12, scores the held-out images and writes the
parameters. `run` does the same for a test that is alone; its checkpoint in FOLDER/alone is continued too.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from resnet_jax import parallel
from resnet_jax.evaluation.protocols import compile_eval_step, evaluate
from resnet_jax.training import feed
from resnet_jax.training.checkpoints import Checkpoints, Progress
from tests import helpers

STEPS, KEPT = 20, 12
VARIANTS = {
    "global": {},
    "groups": {"batch_norm__group_size": 4},
    "device": {"data__placement": "device", "steps_per_dispatch": 1},
}


def config(variant, **fields):
    """50 does not divide 360: the last batch of an evaluation is padded."""
    fixed = {"steps": STEPS, "evaluation__batch_size": 50, "devices": None, "schedule__boundaries": (8,)}
    return helpers.validated(helpers.digits_config(**fixed | VARIANTS[variant] | fields))


def advance(run, state, source, start, stop):
    """The state after the steps `start` to `stop`."""
    with feed.open_feed(run, source, start, None) as batches:
        for step in range(start, stop):
            state, metrics, count = batches(state, step, step + 1, False)
            parallel.one_at_a_time(state, run.mesh)
            assert count == 1
            assert np.isfinite(np.asarray(metrics["loss"])).all()
    return state


def score(run, state, source):
    """The scores on the held-out images."""
    return evaluate(compile_eval_step(run.model, run.config.data.pad, run.mesh), state, source, run.config, run.mesh)


def run(variant, folder):
    """Parameters and statistics at the end, and the scores."""
    run, state, train_source, test_source = helpers.float64_run(config(variant))
    state = advance(run, state, train_source, 0, KEPT)
    with Checkpoints(folder / variant, run.config.checkpoint) as checkpoints:
        checkpoints.save(KEPT, state, Progress(), None)
    state = advance(run, state, train_source, KEPT, STEPS)
    return helpers.flat({"params": state.params, "batch_stats": state.batch_stats}), score(
        run, state, test_source
    ).as_metrics()


def go_on(folder, **fields):
    """Parameters and statistics at the end, from the checkpoint of step 12 of the variant "groups"."""
    run, _, source, _ = helpers.float64_run(config("groups", **fields))
    with Checkpoints(folder / "groups", run.config.checkpoint, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(KEPT, helpers.as_float64(run.abstract_state()))
    state = advance(run, state, source, KEPT, STEPS)
    return helpers.flat({"params": state.params, "batch_stats": state.batch_stats})


def main(folder, port, number, variants):
    jax.config.update("jax_num_cpu_devices", 4)
    parallel.start_distributed(f"localhost:{port}", 2, number, 60)
    with jax.enable_x64(True):
        for variant in variants:
            arrays, scores = run(variant, folder)
            np.savez(folder / f"{variant}_{number}.npz", **arrays)
            (folder / f"{variant}_{number}.json").write_text(json.dumps(scores))
        if (folder / "alone").is_dir():
            np.savez(folder / f"alone_{number}.npz", **go_on(folder / "alone"))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","))
