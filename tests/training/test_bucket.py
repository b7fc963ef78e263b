"""A run whose workdir is gs://: the real client libraries against an emulator of Google Cloud Storage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from etils import epath

from resnet_jax import config as config_lib
from resnet_jax import validation
from resnet_jax.errors import UserError
from resnet_jax.evaluation.run import evaluate_checkpoint
from resnet_jax.training import workdir as workdirs
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.loop import train
from tests import helpers

STEPS = 30
FLAGS = [
    "--config.model.name=cifar_resnet8",
    f"--config.steps={STEPS}",
    "--config.batch_size=16",
    "--config.schedule.boundaries=(20,)",
    "--config.evaluation.every=10",
    "--config.checkpoint.every=5",
    "--config.logging.every=2",
    "--config.logging.tensorboard=False",
    "--config.logging.curves=False",
]


@pytest.fixture(scope="module")
def emulator():
    """Variables of the environment that lead the client libraries to an emulator with one bucket, named bucket."""
    url = f"http://localhost:{(port := helpers.free_port())}"
    command = [sys.executable, "-m", "tests.training.gcs", str(port)]
    with subprocess.Popen(command, cwd=helpers.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "NO_GCE_CHECK": "true",  # credentials are not looked for
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # the kind of the bucket is not asked for
        }
        process.kill()


@pytest.fixture
def bucket(emulator, monkeypatch, request):
    for name, value in emulator.items():
        monkeypatch.setenv(name, value)
    return f"gs://bucket/{request.node.name}"


def valid(**fields):
    return helpers.validated(helpers.digits_config(**fields))


def read_rows(workdir):
    lines = (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in helpers.TIMES} for line in lines]


def names(workdir):
    return sorted(path.name for path in epath.Path(workdir).iterdir())


def test_a_run_in_a_bucket_is_one_in_a_folder(bucket, tmp_path, capsys):
    config = valid(logging__curves=True, logging__tensorboard=True)
    scores = train(config, tmp_path / "run")
    assert train(config, bucket) == scores
    assert f"results in {bucket}\n" in capsys.readouterr().out
    assert names(bucket) == ["checkpoints", "config.json", "curves.png", "metrics.jsonl", "tensorboard"]
    assert names(f"{bucket}/checkpoints") == names(tmp_path / "run" / "checkpoints")
    assert read_rows(bucket) == read_rows(tmp_path / "run")
    stored = validation.validate(config_lib.load(epath.Path(bucket) / "config.json"))
    step, again = evaluate_checkpoint(stored, bucket, -1)
    assert step in (2, 4)
    assert again.as_metrics()["top1"] == max(row["top1"] for row in read_rows(bucket) if row["split"] == "test")
    assert train(config, bucket) == scores
    assert "was already finished" in capsys.readouterr().out


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(bucket, capsys):
    train(valid(), bucket)
    arrays = [path for path in epath.Path(bucket).glob("checkpoints/4/state/d/*")]
    assert arrays
    for path in arrays:
        path.write_bytes(path.read_bytes()[:-20])
    train(valid(), bucket)
    out = capsys.readouterr().out
    assert f"warning: {bucket}/checkpoints/4: damaged checkpoint" in out
    assert "resumed from step 3 of 4" in out
    assert names(bucket) == ["checkpoints", "config.json", "damaged-checkpoint-4", "metrics.jsonl"]
    with Checkpoints(epath.Path(bucket), valid().checkpoint, read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == 4


def test_a_log_that_cannot_be_sent_is_kept(bucket, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with workdirs.own(bucket) as place:
        (place.local / "metrics.jsonl").write_text("{}")
        monkeypatch.setattr(workdirs.Workdir, "_send", lambda *args: 1 / 0)
    printed = capsys.readouterr().err
    assert f"warning: {bucket}: the log could not be sent (ZeroDivisionError: division by zero)" in printed
    assert f"warning: the log stays in {place.local}" in printed
    assert (place.local / "metrics.jsonl").read_text() == "{}"
    monkeypatch.undo()
    shutil.rmtree(place.local)


def test_two_runs_on_a_machine_cannot_share_a_bucket_folder(bucket):
    with (
        workdirs.own(bucket) as place,
        pytest.raises(UserError, match=f"--workdir={bucket}: another run is using it"),
        workdirs.own(bucket),
    ):
        pass
    assert not place.local.exists()


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(UserError, match=r"--workdir=gs://no-such-bucket/run: .*no-such-bucket"):
        train(valid(), "gs://no-such-bucket/run")
    with pytest.raises(UserError, match=r"no-such-run/checkpoints: no checkpoints; train first"):
        evaluate_checkpoint(valid(model__num_classes=10), f"{bucket}/no-such-run")


def run(workdir, emulator):
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}", *FLAGS]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **emulator}
    return subprocess.Popen(command, cwd=helpers.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_and_started_elsewhere_it_goes_on(bucket, emulator, tmp_path):
    process = run(bucket, emulator)
    checkpoints = epath.Path(bucket) / "checkpoints"
    deadline = time.monotonic() + 100
    while not (checkpoints / "10" / "commit_success.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    kept = [json.loads(line)["step"] for line in (epath.Path(bucket) / "metrics.jsonl").read_text().splitlines()]
    assert max(kept) >= 10, "the log knows less than the checkpoint"

    process = run(bucket, emulator)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "resumed from step" in output
    process = run(tmp_path / "undisturbed", emulator)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert read_rows(bucket) == read_rows(tmp_path / "undisturbed")
