"""train.py and eval.py as a user calls them: what they print and how they end."""

import subprocess
import sys

import pytest
from PIL import Image

from resnet_jax.errors import EXIT_USER_ERROR
from tests import helpers

DIGITS = "--config=configs/digits.py"


def call(script, *arguments):
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=helpers.ROOT,
        env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE is missing, for example --config=configs/digits.py"),
        (["--config=configs/digit.py"], "--config=configs/digit.py: no such file; configs has: cifar10_plain20.py"),
        (
            [DIGITS, "--config.optimizer.learnin_rate=0.2"],
            "config.optimizer has no field 'learnin_rate'; did you mean 'learning_rate'?",
        ),
        ([DIGITS, "--config.optimizer.learning_rate=abc"], "could not convert string to float: 'abc'"),
        ([DIGITS, "--config.optimizer=3"], "optimizer is a group of fields: name, learning_rate"),
        ([DIGITS, "--config.model.name=resnet51"], "model.name='resnet51' is not known; did you mean 'resnet50'?"),
        ([DIGITS, "--workdr=x"], "Unknown command line flag 'workdr'. Did you mean: workdir"),
        ([DIGITS, "--config.steps=3", "--config.steps=4"], "--config.steps is given 2 times; give it once"),
        ([DIGITS, "extra"], "'extra': not a flag; write --name=value"),
        (["--config=configs/resnet50.py"], "data.source='folder' needs a folder: add --config.data.root=PATH"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    result = call("train.py", *arguments)
    assert result.returncode == EXIT_USER_ERROR
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_mistakes_in_a_config_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from resnet_jax.config import TrainConfig\n\ndef get_config():\n    c = TrainConfig()\n    c.lr = 1\n")
    result = call("train.py", f"--config={path}")
    assert result.returncode == EXIT_USER_ERROR
    assert result.stderr.startswith(f"error: {path}, line 5: TrainConfig has no field 'lr'")
    path.write_text("def get_config(:\n")
    assert "SyntaxError" in call("train.py", f"--config={path}").stderr
    path.write_text("def get_config():\n    return {}\n")
    assert "must return a TrainConfig, it returned dict" in call("train.py", f"--config={path}").stderr


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_broken_image_ends_in_one_line(tmp_path, workers):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40)).save(tmp_path / split / name / f"{i}.jpg")
    (tmp_path / "train" / "dog" / "2.jpg").write_text("this is text")
    result = call(
        "train.py",
        "--config=configs/resnet18.py",
        f"--config.data.root={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.image_size=32",
        "--config.data.train_scale=(32,40)",
        "--config.evaluation.resize=32",
        "--config.batch_size=8",
        "--config.steps=1",
        f"--config.data.workers={workers}",
    )
    assert result.returncode == EXIT_USER_ERROR
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"error: {tmp_path}/train/dog/2.jpg: not an image file; remove it or replace it"
    assert "Traceback" not in result.stderr


def test_train_then_evaluate(tmp_path):
    flags = ["--config.model.name=cifar_resnet8", "--config.steps=3", "--config.logging.tensorboard=False"]
    trained = call("train.py", DIGITS, f"--workdir={tmp_path}", *flags)
    assert trained.returncode == 0, trained.stderr
    summary = trained.stdout.strip().splitlines()[-1]
    assert summary.startswith("test top-1 ")
    assert summary.endswith("/360)")
    evaluated = call("eval.py", f"--workdir={tmp_path}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"{tmp_path}, step 3: {summary.removeprefix('test ')}, top-5" in evaluated.stdout
    assert "360 images scored" in evaluated.stdout
    assert "no checkpoint of step 2; there are [3]" in call("eval.py", f"--workdir={tmp_path}", "--step=2").stderr
    assert "no config.json in it" in call("eval.py", f"--workdir={tmp_path / 'x'}").stderr
    both = call("eval.py", f"--workdir={tmp_path}", "--config=configs/digits.py").stderr
    assert both == "error: --config=FILE and --workdir together: a run has its own config; leave one out\n"
    unknown = call("eval.py", f"--workdir={tmp_path}", "--config.data.rot=x").stderr
    assert unknown.startswith("error: --config.data.rot=x: config.data has no field 'rot'; did you mean 'root'?")


def test_feature_example(tmp_path):
    """It runs on any image folder, and tells apart what random features can: two colours."""
    for split in ("train", "val"):
        for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (40, 36 + index), colour).save(tmp_path / split / name / f"{index}.png")
    done = call("examples/features.py", f"--root={tmp_path}", "--network=cifar_resnet8")
    assert "stage3 [6, 8, 8, 64]" in done.stdout, done.stderr
    assert "6 of 6 held-out images right" in done.stdout
