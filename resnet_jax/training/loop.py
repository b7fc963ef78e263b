"""The training loop. It starts from the last checkpoint in the workdir, else from `init`, else fresh.

Stopped anywhere, it goes on there.
"""

import math
import pathlib
import signal
import threading
import time
from types import FrameType, TracebackType

import jax

from resnet_jax import config as config_lib
from resnet_jax import parallel, validation
from resnet_jax.config import TrainConfig
from resnet_jax.data import augment, mix, normalize, pipeline
from resnet_jax.data.sources import Source
from resnet_jax.errors import Stopped, UserError
from resnet_jax.evaluation import statistics
from resnet_jax.evaluation.metrics import Scores
from resnet_jax.evaluation.protocols import compile_eval_step, evaluate
from resnet_jax.models import formulation
from resnet_jax.models.resnet import count_parameters, variable_shapes
from resnet_jax.training import experiment as experiment_lib
from resnet_jax.training.checkpoints import Checkpoints, Progress
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.logging import Logger
from resnet_jax.training.state import TrainState, fresh_state
from resnet_jax.training.step import Metrics, compile_train_step
from resnet_jax.weights import formats

MOST_WAIT = 0.1  # share of the time spent waiting for data above which there is advice


class StopSignal:
    """Notes SIGTERM and Ctrl-C, so that the loop can save first; a second one stops at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def requested(self) -> bool:
        """Whether a signal came."""
        return self.name is not None


def first_state(run: Experiment, source: Source) -> TrainState:
    """The state before the first step, on the host: the weights named by `init`, else fresh ones."""
    config = run.config
    pixels = normalize.statistics(config.data, source)
    state = fresh_state(run.model, run.optimizer, run.image_shape, pixels, config.seed)
    if config.init is None:
        return state
    loaded = formats.load(config.init, variable_shapes(run.model, run.image_shape), config.init_head)
    return state.replace(params=state.params | loaded["params"], batch_stats=loaded["batch_stats"])


def start_state(run: Experiment, source: Source, checkpoints: Checkpoints, workdir: pathlib.Path) -> tuple:
    """The state to start from, and the progress: the last checkpoint in the workdir, else `first_state`.

    Raises:
      UserError: the workdir holds a run of another config.
    """
    steps, stored = checkpoints.steps(), workdir / "config.json"
    if steps:
        if steps[-1] > run.config.steps:
            raise UserError(
                f"{workdir} is at step {steps[-1]} already, beyond steps={run.config.steps}; set steps higher, or "
                "use another --workdir"
            )
        if stored.exists() and (found := validation.differences(config_lib.load(stored), run.config)):
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(found)}); "
                "use another --workdir, or give the config it was started with"
            )
        state, progress = checkpoints.restore(steps[-1], run.abstract_state())
    else:
        state, progress = parallel.put_replicated(first_state(run, source), run.mesh), Progress()
    temporary = stored.with_suffix(".tmp")
    temporary.write_text(config_lib.to_json(run.config))
    temporary.replace(stored)
    return state, progress


class Trainer:
    """One run, from its start or its last checkpoint to its last step."""

    def __init__(
        self,
        run: Experiment,
        train_source: Source,
        test_source: Source,
        checkpoints: Checkpoints,
        log: Logger,
        stop: StopSignal,
        state: TrainState,
        progress: Progress,
    ):
        """Takes what `train` made; `state` is donated to the first step."""
        self._run, self._config = run, run.config
        self._train_source, self._test_source = train_source, test_source
        self._checkpoints, self._log, self._stop = checkpoints, log, stop
        self._state, self._progress = run.for_model(state), progress
        self._step_fn = compile_train_step(
            run.model, run.optimizer, run.schedule, self._config.data.pad, run.mesh, mix.mixer(self._config)
        )
        self._eval_fn = compile_eval_step(run.model, self._config.data.pad, run.mesh)
        self._pending: tuple[int, Metrics] | None = None
        self._skipped = {split: pipeline.Skipped(log.say) for split in ("train", "test")}
        self._window_clock = (time.monotonic(), 0)
        self._waited, self._warned = 0.0, False  # seconds of this window spent waiting for data
        self._seconds_before, self._clock = progress.seconds, time.monotonic()

    def run(self) -> bool:
        """Trains to the last step and evaluates there. Returns whether there was anything left to do."""
        config, start = self._config, int(self._state.step)
        rows = parallel.local_rows(self._run.mesh, config.batch_size)
        transform = augment.train_transform(config)
        batches = pipeline.TrainBatches(
            self._train_source,
            transform,
            config.batch_size,
            rows,
            config.seed,
            max(config.steps, start),
            repeats=config.data.repeats,
            skip=config.data.on_error == "skip",
        )
        owed = start > 0 and self._evaluation_due(start) and not self._log.evaluated(start)
        if owed:  # stopped during an evaluation
            self._evaluate(start)
        with pipeline.iterate(batches, start, config.data, self._skipped["train"]) as iterator:
            for step in range(start + 1, config.steps + 1):
                self._update(step, iterator)
                scores = self._evaluate(step) if self._evaluation_due(step) else None
                every = config.checkpoint.every
                if step == config.steps or (every and step % every == 0):
                    self._save(step, scores)
                self._check_stop(step)
        self._checkpoints.wait()
        if broken := self._skipped["train"].names:
            times, since = self._skipped["train"].count, f" since step {start}" if start else ""
            self._log.say(f"skipped {len(broken)} broken training images, {times} times in all{since}")
        return owed or start < config.steps

    def _evaluation_due(self, step: int) -> bool:
        every = self._config.evaluation.every
        return step == self._config.steps or bool(every and step % every == 0)

    def _update(self, step: int, iterator) -> None:
        began = time.monotonic()
        try:
            batch = next(iterator)
        except Exception:
            self._check_stop(step - 1)  # Ctrl-C may have reached a data worker first
            raise
        self._waited += time.monotonic() - began
        with jax.transfer_guard("disallow"):
            batch = parallel.put_batch(batch, self._run.mesh, self._config.batch_size)
            self._state, metrics = self._step_fn(self._state, batch)
            parallel.one_at_a_time(self._state, self._run.mesh)
        # Fetch the metrics one step late: the device is never idle, and never more than one step ahead.
        self._fetch()
        self._pending = (step, metrics)
        if step % self._config.logging.every == 0 or step == self._config.steps:
            self._write_row(step)

    def _fetch(self) -> None:
        """Adds the pending step's metrics to the window; a loss or gradient that is not finite ends the run here."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "parameter_norm"):
            if not math.isfinite(values[name]):
                raise UserError(f"step {step}: the {name} is {values[name]}; {self._advice()}")
        window = self._progress.window
        for name, value in (
            ("loss", values["loss"] * values["count"]),
            *((n, values[n]) for n in ("correct", "count")),
        ):
            window[name] = window.get(name, 0) + value
        window["learning_rate"] = values["learning_rate"]
        self._log.step_done(step, values["loss"])
        if self._window_clock[1] == 0:  # speed is counted from the end of the first step, which compiles
            self._window_clock, self._waited = (time.monotonic(), step), 0.0

    def _advice(self) -> str:
        kept = self._checkpoints.steps()
        last = f"the last checkpoint is of step {kept[-1]}" if kept else "there is no checkpoint yet"
        return f"{last}. Try a lower optimizer.learning_rate or a longer warm-up"

    def _write_row(self, step: int) -> None:
        self._fetch()
        window, (since, first) = self._progress.window, self._window_clock
        now = time.monotonic()
        speed = (step - first) * self._config.batch_size / (now - since) if step > first else 0.0
        row = {"loss": window["loss"] / window["count"], "top1": window["correct"] / window["count"]}
        wait = self._waited / (now - since) if step > first else 0.0
        row |= {"learning_rate": window["learning_rate"], "images_per_second": speed, "data_wait": wait}
        self._log.write(step, "train", row)
        if wait > MOST_WAIT and not self._warned:
            self._warned = True
            self._log.say(
                f"warning: {100 * wait:.0f} % of the time was spent waiting for data. Try more data.threads or "
                "data.workers, data.antialias=False, or images packed at a smaller size (python -m resnet_jax.data.prepare)"
            )
        self._progress.window = {}
        self._window_clock, self._waited = (now, step), 0.0

    def _evaluate(self, step: int) -> Scores:
        self._fetch()
        began = time.monotonic()
        try:
            scores = evaluate(
                self._eval_fn,
                self._state,
                self._test_source,
                self._config,
                self._run.mesh,
                progress=self._log.interactive,
                should_stop=self._stop.requested,
                skipped=self._skipped["test"],
            )
        except Stopped:
            self._check_stop(step)
            raise
        if not math.isfinite(scores.loss):
            raise UserError(f"step {step}: the loss on the test images is {scores.loss}; {self._advice()}")
        self._log.write(step, "test", scores.as_metrics())
        self._log.draw()
        self._log.say(f"step {step}: test {scores}")
        self._window_clock = (self._window_clock[0] + time.monotonic() - began, self._window_clock[1])
        return scores

    def evaluate_precisely(self) -> None:
        """Scores the state with precise batch-norm statistics too, once; the state stays as it is."""
        step, images, stop = int(self._state.step), self._config.evaluation.precise_images, self._stop.requested
        if self._log.evaluated(step, "precise"):
            return
        state = self._run.for_checkpoint(self._state)
        try:
            stats = statistics.precise_statistics(self._run, state, self._train_source, images, stop)
            state = self._run.for_model(state.replace(batch_stats=stats))
            scores = evaluate(
                self._eval_fn,
                state,
                self._test_source,
                self._config,
                self._run.mesh,
                progress=self._log.interactive,
                should_stop=stop,
                skipped=self._skipped["test"],
            )
        except Stopped:
            self._check_stop(step)
            raise
        self._log.write(step, "precise", scores.as_metrics())
        self._log.say(f"step {step}, batch-norm statistics of {images} training images: test {scores}")

    def _save(self, step: int, scores: Scores | None) -> None:
        self._fetch()  # nothing is saved whose loss is not known to be finite
        self._progress.seconds = self._seconds_before + time.monotonic() - self._clock
        state = self._run.for_checkpoint(self._state)
        self._checkpoints.save(step, state, self._progress, scores.as_metrics() if scores else None)

    def _check_stop(self, step: int) -> None:
        if not self._stop.requested():
            return
        if step > 0 and step not in self._checkpoints.steps():
            self._save(step, None)
        self._checkpoints.wait()
        raise Stopped(f"stopped by {self._stop.name} at step {step}, saved; run the same command again to go on")


def train(config: TrainConfig, workdir: str | pathlib.Path) -> dict[str, float]:
    """Trains as a config says, in a workdir, from the last checkpoint there if there is one.

    The workdir gets config.json, checkpoints/, metrics.jsonl, curves.png and tensorboard/.

    Args:
      config: validated (`validation.validate`).
      workdir: the folder of this run.

    Returns:
      The scores on the held-out images after the last step: top1, top5, loss, images.

    Raises:
      UserError: bad data, config or workdir, or a loss that is not finite.
      Stopped: SIGTERM or Ctrl-C; the state is saved.
    """
    workdir = pathlib.Path(workdir)
    with experiment_lib.own_workdir(workdir):
        train_source = experiment_lib.open_data(config, "train")
        test_source = experiment_lib.open_data(config, "val")
        run = experiment_lib.build(config, len(train_source.classes), train_source.channels)
        config = run.config
        validation.check_devices(config, run.mesh.size)
        with StopSignal() as stop, Checkpoints(workdir, config.checkpoint) as checkpoints:
            state, progress = start_state(run, train_source, checkpoints, workdir)
            start = int(state.step)
            with Logger(workdir, config.logging, start, config.steps, config.batch_size) as log:
                log.say(describe(run, train_source, test_source, state))
                log.say(f"resumed from step {start} of {config.steps}" if start else f"training {config.steps} steps")
                trainer = Trainer(run, train_source, test_source, checkpoints, log, stop, state, progress)
                trained = trainer.run()
                if config.evaluation.precise_images:
                    trainer.evaluate_precisely()
                log.draw()
                final = log.last_scores()
                right = round(final["top1"] * final["images"])
                log.say(
                    f"{'finished' if trained else 'was already finished'} after {progress.seconds:.0f} s of training; "
                    f"results in {workdir}\ntest top-1 {100 * final['top1']:.2f} % ({right}/{final['images']})"
                    + (f"; NOT SCORED: {final['skipped']} broken images" if "skipped" in final else "")
                )
    return final


def describe(run: Experiment, train_source: Source, test_source: Source, state: TrainState) -> str:
    """A few lines on what runs where, and how."""
    config, device = run.config, run.mesh.devices.flat[0]
    millions = count_parameters({"params": state.params}) / 1e6
    return (
        f"{config.model.name}, shortcut {run.model.shortcut or 'none'}, {millions:.2f} M parameters, {config.model.dtype}; "
        f"{len(train_source)} training and {len(test_source)} test images, {len(train_source.classes)} classes\n"
        f"{run.mesh.size} x {device.device_kind} ({device.platform}), {config.batch_size} images per step, "
        f"batch norm over {config.batch_norm.group_size or 'all'} of them\n{formulation.describe()}; "
        f"blocks {'in a loop (scan_blocks)' if run.model.scan_blocks else 'unrolled'}"
        + (f", stages {run.model.remat} computed again in the backward pass" if run.model.remat else "")
    )
