"""A run whose workdir is gs://: the real client libraries against an emulator of Google Cloud Storage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

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
COMMAND = [
    sys.executable,
    "train.py",
    "--config=configs/digits.py",
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


def test_only_one_process_sends_the_log(bucket):
    with workdirs.own(bucket) as place, workdirs.own(bucket, writes=False) as other:
        (place.local / "metrics.jsonl").write_text("the log")
        (other.local / "metrics.jsonl").write_text("not the log")
        assert place.send()
        assert other.send()
    assert (epath.Path(bucket) / "metrics.jsonl").read_text() == "the log"


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


def start(command):
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=helpers.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_and_started_elsewhere_it_goes_on(bucket, tmp_path):
    process = start([*COMMAND, f"--workdir={bucket}"])
    checkpoints = epath.Path(bucket) / "checkpoints"
    deadline = time.monotonic() + 100
    while not (checkpoints / "10" / "commit_success.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    kept = [json.loads(line)["step"] for line in (epath.Path(bucket) / "metrics.jsonl").read_text().splitlines()]
    assert max(kept) >= 10, "the log knows less than the checkpoint"

    process = start([*COMMAND, f"--workdir={bucket}"])
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "resumed from step" in output
    process = start([*COMMAND, f"--workdir={tmp_path / 'undisturbed'}"])
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert read_rows(bucket) == read_rows(tmp_path / "undisturbed")


@pytest.mark.slow
def test_two_processes_write_one_bucket(bucket):
    command = [*COMMAND, f"--workdir={bucket}", f"--coordinator=localhost:{helpers.free_port()}", "--num_processes=2"]
    for resumed in (False, True):
        if resumed:
            (epath.Path(bucket) / "checkpoints" / str(STEPS)).rmtree()
        both = [start([*command, f"--process_id={k}"]) for k in range(2)]
        outputs = [process.communicate(timeout=200)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        assert ("resumed from step 25 of 30" in outputs[0]) == resumed, outputs[0]
    assert names(bucket) == ["checkpoints", "config.json", "metrics.jsonl"]
    assert [row["step"] for row in read_rows(bucket) if row["split"] == "test"] == [10, 20, 30]
