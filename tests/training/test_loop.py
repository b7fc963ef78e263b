"""The loop in one process: what it writes, keeps, refuses, and how it ends."""

import json
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax import config as config_lib
from resnet_jax import validation
from resnet_jax.data import pipeline
from resnet_jax.errors import Stopped, UserError
from resnet_jax.evaluation.run import evaluate_checkpoint
from resnet_jax.training import loop
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.loop import train
from tests import helpers


def valid(**fields):
    return helpers.validated(helpers.digits_config(**fields))


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def test_writes_metrics_curves_tensorboard_config_and_checkpoints(tmp_path, capsys):
    config = valid(logging__tensorboard=True, logging__curves=True, logging__every=2)
    scores = train(config, tmp_path)
    assert scores["images"] == 360
    train_rows = [row for row in rows(tmp_path) if row["split"] == "train"]
    test_rows = [row for row in rows(tmp_path) if row["split"] == "test"]
    assert [row["step"] for row in train_rows] == [2, 4]
    assert [row["step"] for row in test_rows] == [2, 4]
    assert test_rows[-1] == {"step": 4, "split": "test", **scores}
    assert train_rows[0]["learning_rate"] == pytest.approx(0.1)
    assert Image.open(tmp_path / "curves.png").size[0] > 500
    assert list((tmp_path / "tensorboard").iterdir())
    stored = config_lib.load(tmp_path / "config.json")
    assert stored.model.num_classes == 10
    assert validation.differences(stored, config_lib.resolved(config, 10)) == []
    assert f"test top-1 {100 * scores['top1']:.2f} % ({round(360 * scores['top1'])}/360)" in capsys.readouterr().out
    # The stored checkpoint is the state that was scored.
    step, again = evaluate_checkpoint(validation.validate(stored), tmp_path)
    assert step == 4
    assert again.as_metrics()["top1"] == scores["top1"]


def test_a_row_is_the_mean_over_its_steps(tmp_path):
    train(valid(steps=4, logging__every=1), tmp_path / "each")
    train(valid(steps=4, logging__every=4), tmp_path / "all")
    each, whole = ([row for row in rows(tmp_path / name) if row["split"] == "train"] for name in ("each", "all"))
    assert (len(each), len(whole)) == (4, 1)
    for name in ("loss", "top1"):
        assert whole[0][name] == pytest.approx(sum(row[name] for row in each) / 4, rel=1e-6)


def test_training_learns(tmp_path):
    config = valid(
        steps=100,
        batch_size=64,
        schedule__boundaries=(70,),
        evaluation__every=0,
        checkpoint__every=0,
        logging__every=50,
    )
    assert train(config, tmp_path)["top1"] > 0.8
    assert kept(tmp_path) == [100]


def test_a_finished_run_says_so(tmp_path, capsys):
    scores = train(valid(), tmp_path)
    again = train(valid(), tmp_path)
    assert again == scores
    assert "was already finished" in capsys.readouterr().out


def test_more_steps_continue_a_finished_run(tmp_path):
    train(valid(steps=2), tmp_path / "a")
    train(valid(steps=4), tmp_path / "a")
    train(valid(steps=4), tmp_path / "b")
    states = []
    for name in "ab":
        config = validation.validate(config_lib.load(tmp_path / name / "config.json"))
        run = loop.experiment_lib.build(config, 10, 1)
        with Checkpoints(tmp_path / name, config.checkpoint) as checkpoints:
            states.append(checkpoints.restore(4, run.abstract_state())[0])
    helpers.assert_same_bits(*states)


@pytest.mark.slow  # test_devices has the step in float64
def test_one_device_and_eight_train_alike(tmp_path):
    train(valid(devices=1, steps=2), tmp_path / "one")
    train(valid(devices=8, steps=2), tmp_path / "eight")
    for one, eight in zip(rows(tmp_path / "one"), rows(tmp_path / "eight"), strict=True):
        assert one["loss"] == pytest.approx(eight["loss"], rel=1e-4)


def test_another_config_in_the_workdir_is_refused(tmp_path):
    train(valid(steps=1), tmp_path)
    with pytest.raises(UserError, match=r"holds a run of another config \(optimizer.learning_rate: 0.1 there, 0.2 here\)"):
        train(valid(steps=1, optimizer__learning_rate=0.2), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="a checkpoint of another network: batch_stats/stage1/block2"):
        train(valid(steps=1, model__name="cifar_resnet14"), tmp_path)
    assert kept(tmp_path) == [1]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved(tmp_path):
    config = valid(steps=30, optimizer__learning_rate=1e6, evaluation__every=0)
    with pytest.raises(UserError, match=r"step \d+: the (loss|parameter_norm) is (nan|inf); "):
        train(config, tmp_path)
    run = loop.experiment_lib.build(config, 10, 1)
    with Checkpoints(tmp_path, config.checkpoint) as checkpoints:
        for step in checkpoints.steps():
            state, _ = checkpoints.restore(step, run.abstract_state())
            assert step < 5
            assert int(state.step) == step


@pytest.mark.parametrize(("during", "moment"), [("training", 3), ("evaluation", 3), ("evaluation", 6)])
def test_a_signal_saves_and_the_next_run_goes_on(tmp_path, monkeypatch, during, moment):
    # Rows of two steps: a stop after step 3 cuts one in half.
    config = valid(steps=6, evaluation__every=3, checkpoint__every=0, logging__every=2)
    whole = train(config, tmp_path / "whole")

    name = "_update" if during == "training" else "_evaluate"
    real, seen = getattr(loop.Trainer, name), []

    def interrupted(self, step, *args):
        if step == moment - (during == "training") and not seen:
            seen.append(step)
            signal.raise_signal(signal.SIGTERM)
        return real(self, step, *args)

    monkeypatch.setattr(loop.Trainer, name, interrupted)
    with pytest.raises(Stopped, match=f"stopped by SIGTERM at step {moment}, saved"):
        train(config, tmp_path / "parts")
    assert kept(tmp_path / "parts") == [moment]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(config, tmp_path / "parts") == whole
    assert train(config, tmp_path / "parts") == whole  # already finished: nothing is done twice

    def strip(workdir):
        return [{k: v for k, v in row.items() if k not in helpers.TIMES} for row in rows(workdir)]

    assert strip(tmp_path / "parts") == strip(tmp_path / "whole")


def test_nothing_is_compiled_after_the_first_step(tmp_path, monkeypatch):
    compiled, real = [], loop.Trainer._train

    def note(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details)

    def watched(self, step):
        jax.monitoring.register_event_duration_secs_listener(note)
        try:
            real(self, step)
        finally:
            jax.monitoring.unregister_event_duration_listener(note)

    monkeypatch.setattr(loop.Trainer, "_train", watched)
    train(valid(average__decay=0.9), tmp_path)
    assert not compiled


def test_two_runs_cannot_share_a_workdir(tmp_path):
    with (
        loop.workdirs.own(tmp_path),
        pytest.raises(UserError, match="another run is using it"),
        loop.workdirs.own(tmp_path),
    ):
        pass
    with loop.workdirs.own(tmp_path):
        pass


def test_evaluating_beside_a_running_training_disturbs_nothing(tmp_path, monkeypatch):
    config = valid(steps=4)
    real = loop.Trainer._save

    def save_and_evaluate(self, step, scores):
        real(self, step, scores)  # still being written
        if step > 1:
            evaluate_checkpoint(config_lib.resolved(config, 10), tmp_path)

    monkeypatch.setattr(loop.Trainer, "_save", save_and_evaluate)
    train(config, tmp_path)
    assert kept(tmp_path)[-1] == 4


def test_fewer_steps_than_already_made(tmp_path):
    train(valid(steps=3), tmp_path)
    with pytest.raises(UserError, match="is at step 3 already, beyond steps=2"):
        train(valid(steps=2), tmp_path)


def test_a_damaged_log_is_not_thrown_away(tmp_path):
    train(valid(steps=2), tmp_path)
    path = tmp_path / "metrics.jsonl"
    good = path.read_text()
    path.write_text(good + '{"step": 3, "spl')  # cut off by a kill
    train(valid(steps=3), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2, 3, 3]
    path.write_text("nonsense\n" + good)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: not a row of metrics"):
        train(valid(steps=4), tmp_path)
    assert path.read_text() == "nonsense\n" + good


def test_wrong_number_of_classes(tmp_path):
    with pytest.raises(UserError, match=r"model\.num_classes=7, but digits data has 10 classes"):
        train(valid(model__num_classes=7), tmp_path)


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir=s3://bucket/run: must be a folder or gs://BUCKET/PATH"):
        train(valid(), "s3://bucket/run")
    with pytest.raises(UserError, match=r"--workdir=.*file/run: cannot be used \(Not a directory\)"):
        train(valid(), tmp_path / "file" / "run")


def test_waiting_for_data_is_measured_and_warned_of_once(tmp_path, monkeypatch, capsys):
    config = valid(steps=8, evaluation__every=0, checkpoint__every=0, data__threads=1)
    train(config, tmp_path / "fast")
    quick = [row["data_wait"] for row in rows(tmp_path / "fast") if row["split"] == "train"]
    load = pipeline.TrainBatches.__getitem__
    monkeypatch.setattr(pipeline.TrainBatches, "__getitem__", lambda self, step: time.sleep(0.3) or load(self, step))
    capsys.readouterr()
    train(config, tmp_path / "slow")
    slow = [row["data_wait"] for row in rows(tmp_path / "slow") if row["split"] == "train"]
    assert slow[0] == 0, "the first step compiles"
    assert all(0.5 < wait <= 1 for wait in slow[-3:])
    assert min(quick[1:]) < 0.5
    assert capsys.readouterr().out.count("of the time was spent waiting for data. Try more data.threads") == 1


def test_batch_that_the_devices_cannot_share(tmp_path):
    with pytest.raises(UserError, match="batch_size=20 cannot be shared by 8 devices"):
        train(valid(batch_size=20, devices=8), tmp_path)


@pytest.mark.parametrize("group", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_image_folder_end_to_end(tmp_path, group):
    rng = np.random.RandomState(0)
    for split, count in (("train", 12), ("val", 5)):
        for label in range(3):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 120, (50 + i, 60, 3)) + np.eye(3, dtype=int)[label] * 120
                mode = ("RGB", "L", "CMYK")[i] if i < 3 else "RGB"
                Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / f"{i}.jpg")
    config = valid(
        model__name="resnet18",
        data__source="folder",
        data__root=str(tmp_path / "images"),
        data__image_size=32,
        data__augment="scale_crop",
        data__train_scale=(36, 48),
        data__mean="imagenet",
        evaluation__resize=36,
        batch_norm__group_size=group,
        steps=2,
        devices=2,
    )
    assert train(config, tmp_path / "run")["images"] == 15


def test_synthetic_needs_no_folder(tmp_path):
    config = valid(
        model__name="cifar_resnet8",
        data__source="synthetic",
        data__image_size=16,
        data__mean="imagenet",
        data__synthetic_images=64,
        data__synthetic_classes=4,
        steps=2,
    )
    assert train(config, tmp_path)["images"] == 16
    assert jax.device_count() == 8


def test_every_augmentation_and_broken_images_end_to_end(tmp_path, capsys):
    rng = np.random.RandomState(0)
    for split, count in (("train", 6), ("val", 5)):
        for label in range(3):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.randint(0, 256, (40, 50, 3)).astype(np.uint8)).save(folder / f"{i}.jpg")
        (folder / "1.jpg").write_bytes(b"no image")

    config = valid(
        data__source="folder",
        data__root=str(tmp_path / "images"),
        data__image_size=24,
        data__augment="inception_crop",
        data__resample="bicubic",
        data__antialias=False,
        data__mean="imagenet",
        data__lighting=0.1,
        data__colour_jitter=0.4,
        data__policy="randaugment",
        data__random_erasing=0.5,
        data__repeats=2,
        data__on_error="skip",
        mix__mixup_alpha=0.2,
        mix__label_smoothing=0.1,
        evaluation__image_size=32,
        evaluation__crop_fraction=0.875,
        evaluation__every=0,
        steps=2,
        batch_size=24,
    )

    final = train(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert (final["images"], final["skipped"]) == (14, 1)
    assert final["loss"] > 0
    for split in ("train", "val"):
        assert said.count(f"{split}/class2/1.jpg: not an image file") == 1
    assert "skipped 1 broken training images" in said
    assert said.rstrip().endswith("; NOT SCORED: 1 broken images")
