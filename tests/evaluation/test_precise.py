"""Precise batch norm against NumPy in float64; the command and the option beside the plain score."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from resnet_jax import config as config_lib
from resnet_jax import parallel
from resnet_jax.data import augment, pipeline, sources
from resnet_jax.errors import Stopped, UserError
from resnet_jax.evaluation import run as runs
from resnet_jax.evaluation import statistics
from resnet_jax.evaluation.moments import Moments
from resnet_jax.models.layers import Conv
from resnet_jax.models.resnet import variable_shapes
from resnet_jax.training import experiment
from resnet_jax.training.loop import train
from tests import helpers, test_command_line


def test_moments_of_parts_are_those_of_the_whole():
    rng = np.random.RandomState(0)
    parts = [rng.standard_normal((n, 3)) * (i + 1) + 1e4 * i for i, n in enumerate((5, 1, 40))]
    moments = Moments()
    for part in parts:
        moments.add(len(part), part.mean(0), np.square(part - part.mean(0)).sum(0))
    moments.add(0, np.nan, np.nan)
    whole = np.concatenate(parts)
    assert moments.count == 46
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance(unbiased=True), whole.var(0, ddof=1), rtol=1e-13)
    np.testing.assert_allclose(moments.variance(unbiased=False), whole.var(0), rtol=1e-13)


def prepared(devices, **fields):
    """An experiment in float64 on digits, with random weights, and its training set."""
    config = helpers.validated(helpers.digits_config(devices=devices, model__shortcut="B", **fields))
    run = experiment.build(config, 10, 1)
    run = dataclasses.replace(run, model=run.model.clone(dtype=np.float64))
    variables = helpers.random_like(variable_shapes(run.model, (8, 8, 1)))
    state = helpers.state_of(variables, run.optimizer, [80], [90])
    return run, parallel.put_replicated(state, run.mesh), sources.digits("train")


def expected(run, state, source, images):
    """Mean and unbiased variance, by NumPy, of what all convolutions put out, batch after batch of the training stream."""
    config, outputs = run.config, {}
    batches = pipeline.TrainBatches(
        source, augment.train_transform(config), config.batch_size, range(config.batch_size), config.seed, 99
    )
    for part in range(images // config.batch_size * config.accumulate):
        step, first = divmod(part, config.accumulate)
        batch = {name: values[first :: config.accumulate] for name, values in batches[step].items()}
        x = np.stack([crop(i, w, config.data.pad) for i, w in zip(batch["image"], batch["window"], strict=True)]) / 90
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        _, taken = run.model.apply(
            variables,
            x,
            train=True,
            mutable=["intermediates", "batch_stats"],
            capture_intermediates=lambda module, _: isinstance(module, Conv),
        )
        if part == 0:  # the first of these by hand: a 3x3 convolution, one pixel of zeros around
            kernel, padded = np.asarray(state.params["stem"]["conv"]["kernel"]), np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            own = sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
            np.testing.assert_allclose(taken["intermediates"]["stem"]["conv"]["__call__"][0], own, atol=1e-12)
        for path, (value,) in traverse_util.flatten_dict(taken["intermediates"]).items():
            outputs.setdefault(path[:-1], []).append(np.asarray(value))
    stats = {}
    for path, parts in outputs.items():
        whole = np.concatenate(parts)
        whole = whole.reshape(-1, whole.shape[-1])
        norm = (*path[:-1], path[-1].replace("conv", "bn"))
        stats |= {(*norm, "mean"): whole.mean(0), (*norm, "var"): whole.var(0, ddof=1)}
    return stats


def crop(image, window, pad):
    """The image, which is cropped and mirrored already, less the mean (80) where it is not padding."""
    inside = np.pad(np.full((8, 8, 1), 80.0), ((pad, pad), (pad, pad), (0, 0)))
    inside = inside[window[0] : window[0] + 8, window[1] : window[1] + 8]
    return image - (inside[:, ::-1] if window[2] else inside)


@pytest.mark.parametrize(
    ("devices", "group", "scan", "accumulate"),
    [
        pytest.param(1, None, False, 1, marks=pytest.mark.slow),
        pytest.param(8, None, False, 1, marks=pytest.mark.slow),
        (2, 4, False, 1),
        (1, None, True, 1),
        (2, None, False, 2),
    ],
)
def test_against_numpy(x64, devices, group, scan, accumulate):
    fields = {"batch_norm__group_size": group, "model__scan_blocks": scan, "accumulate": accumulate}
    run, state, source = prepared(devices, **fields)
    # 59 images: three batches of 16, and 11 left out.
    got = statistics.precise_statistics(run, state, source, 59)
    want = expected(dataclasses.replace(run, model=run.model.clone(scan_blocks=False)), state, source, 48)
    got = traverse_util.flatten_dict(jax.device_get(got))
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_allclose(got[path], value, rtol=1e-9, atol=1e-12, err_msg="/".join(path))
    # It is neither what the state had nor the mean of the batches' variances.
    assert not np.allclose(got["stem", "bn", "var"], state.batch_stats["stem"]["bn"]["var"], rtol=1e-2)


def test_what_cannot_be_estimated(x64):
    run, state, source = prepared(1)
    with pytest.raises(UserError, match="15 images do not fill one training batch of 16"):
        statistics.precise_statistics(run, state, source, 15)
    with pytest.raises(Stopped):
        statistics.precise_statistics(run, state, source, 32, should_stop=lambda: True)
    with pytest.raises(UserError, match=r"batch_norm\.frozen=True: the statistics are constants"):
        helpers.validated(helpers.digits_config(batch_norm__frozen=True, evaluation__precise_images=64))


def test_after_training_beside_the_plain_score(tmp_path, capsys):
    plain = train(helpers.validated(helpers.digits_config()), tmp_path)
    config = helpers.validated(helpers.digits_config())
    _, run, before = runs.restore_checkpoint(config_lib.resolved(config, 10), tmp_path)
    # A run that ended without it gets the score when it is started again with the option, once.
    for _ in range(2):
        precise_config = helpers.validated(helpers.digits_config(evaluation__precise_images=64))
        assert train(precise_config, tmp_path) == plain, "the score of the run is the plain one"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (precise,) = [row for row in rows if row["split"] == "precise"]
    assert (precise["step"], precise["images"]) == (4, 360)
    assert precise["loss"] != plain["loss"]
    assert "step 4, batch-norm statistics of 64 training images: test top-1" in capsys.readouterr().out
    stored = helpers.validated(config_lib.load(tmp_path / "config.json"))
    _, run, state = runs.restore_checkpoint(stored, tmp_path)
    helpers.assert_same_bits(state, before)
    after = state.replace(batch_stats=statistics.precise_statistics(run, state, sources.digits("train"), 64))
    assert runs.score(run, after).as_metrics()["loss"] == pytest.approx(precise["loss"], rel=1e-5)


def test_the_command(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "precise.safetensors"
    train(helpers.validated(helpers.digits_config()), workdir)
    before = {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()}
    done = test_command_line.call(
        "-m", "resnet_jax.evaluation.precise", f"--workdir={workdir}", "--images=100", f"--output={output}"
    )
    assert done.returncode == 0, done.stderr
    assert "of 96 training images" in done.stdout
    assert {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()} == before
    scores = json.loads(output.with_suffix(".json").read_text())
    assert (scores["step"], scores["training_images"]) == (4, 96)
    assert f"({round(360 * scores['precise']['top1'])}/360)" in done.stdout.splitlines()[-2]
    config = helpers.validated(config_lib.load(workdir / "config.json"))
    _, run, state = runs.restore_checkpoint(config, workdir)
    stats = statistics.precise_statistics(run, state, sources.digits("train"), 96)
    weights = safetensors.numpy.load_file(output)
    np.testing.assert_allclose(weights["bn1.running_var"], stats["stem"]["bn"]["var"], rtol=1e-5)
    np.testing.assert_array_equal(weights["conv1.weight"][:, :, 0, 0].T, state.params["stem"]["conv"]["kernel"][0, 0])
    refused = test_command_line.call("-m", "resnet_jax.evaluation.precise", f"--workdir={workdir}", "--images=3")
    assert "3 images do not fill one training batch of 16" in refused.stderr
