"""The training loop. It starts from the last checkpoint in the workdir, else from `init`, else fresh.

Stopped anywhere, it goes on there.
"""

import math
import pathlib
import time

import jax
import numpy as np

from resnet_jax import parallel, validation
from resnet_jax.config import TrainConfig
from resnet_jax.data import pipeline
from resnet_jax.data.sources import Source
from resnet_jax.errors import Stopped, UserError
from resnet_jax.evaluation import statistics
from resnet_jax.evaluation.metrics import Scores
from resnet_jax.evaluation.protocols import evaluate
from resnet_jax.training import averages, loss_scale, watchdog
from resnet_jax.training import experiment as experiment_lib
from resnet_jax.training import feed as feed_lib
from resnet_jax.training import workdir as workdirs
from resnet_jax.training.checkpoints import Checkpoints, Progress
from resnet_jax.training.compiled import compile_evaluation
from resnet_jax.training.cost import step_cost
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.logging import Logger
from resnet_jax.training.profile import ProfileWindow
from resnet_jax.training.signals import StopSignal
from resnet_jax.training.start import describe, start_state
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Metrics

MOST_WAIT = 0.1  # share of the time spent waiting for data above which there is advice


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
        watch: watchdog.Watchdog,
        state: TrainState,
        progress: Progress,
    ):
        """Takes what `train` made; `state` is donated to the first step."""
        self._run, self._config = run, run.config
        self._train_source, self._test_source = train_source, test_source
        self._checkpoints, self._log, self._stop, self._watch = checkpoints, log, stop, watch
        self._state, self._progress = run.for_model(state), progress
        self._eval_fn: jax.stages.Compiled | None = None
        self._pending: tuple[int, int, Metrics] | None = None
        self._skipped = {split: pipeline.Skipped(log.say) for split in ("train", "test")}
        self._window_clock = (time.monotonic(), 0)
        self._profile = ProfileWindow(self._config.logging.profile_steps, log.workdir.local / "profile")
        self._warned = False  # that the run waits for data
        self._agreed = False  # among several processes, to stop
        self._clock = time.monotonic()

    def run(self) -> bool:
        """Trains to the last step and evaluates there. Returns whether there was anything left to do."""
        config, start = self._config, int(self._state.step)
        owed = bool(parallel.agreed(start > 0 and self._evaluation_due(start) and not self._log.evaluated(start)))
        if owed or start < config.steps:
            self._compile_evaluation()
        if owed:  # stopped during an evaluation
            self._evaluate(start)
        self._watch.rest()
        if start < config.steps:
            feed = feed_lib.open_feed(self._run, self._train_source, start, self._skipped["train"])
            with self._profile, feed as self._feed:
                with self._stop.at_once("before the first step"):
                    self._cost = step_cost(self._run, self._feed.compile(self._state))
                self._watch.beat(watchdog.PATIENCE)
                self._log.say(str(self._cost))
                self._train(start)
        self._checkpoints.wait()
        if broken := self._skipped["train"].names:
            times, since = self._skipped["train"].count, f" since step {start}" if start else ""
            self._log.say(f"skipped {len(broken)} broken training images, {times} times in all{since}")
        return owed or start < config.steps

    def _compile_evaluation(self) -> None:
        """Before the first step: later, a signal would have to wait for it, with steps unsaved."""
        self._watch.beat(watchdog.PATIENCE)
        with self._stop.at_once("before the first step"):
            self._eval_fn = compile_evaluation(self._run, len(self._test_source))

    def _train(self, step: int) -> None:
        """Makes all steps after `step`."""
        config = self._config
        while step < config.steps:
            step = self._update(step)
            scores = self._evaluate(step) if self._evaluation_due(step) else None
            if step == config.steps or _divides(config.checkpoint.every, step):
                self._save(step, scores)
            self._check_stop(step)

    def _evaluation_due(self, step: int) -> bool:
        return step == self._config.steps or _divides(self._config.evaluation.every, step)

    def _next_event(self, step: int) -> int:
        """The next step after which something else than a step is due."""
        config = self._config
        periods = (config.evaluation.every, config.checkpoint.every, config.logging.every)
        edges = (edge for edge in self._profile.edges if edge > step)
        return min(config.steps, *(step + every - step % every for every in periods if every), *edges)

    def _update(self, step: int) -> int:
        """Makes the next step, or several at once, after `step` of them; returns how many are made then."""
        self._profile.before(step + 1)
        try:
            self._state, metrics, count = self._feed(self._state, step, self._next_event(step), self._stop.requested())
        except Exception:
            self._check_stop(step)  # Ctrl-C may have reached a data worker first
            raise
        parallel.one_at_a_time(self._state, self._run.mesh)
        # Fetch the metrics one dispatch late: the device is never idle, and never more than one dispatch ahead.
        self._fetch()
        self._watch.beat(count)
        self._pending = (step, count, metrics)
        step += count
        if self._profile.after(step, self._state):
            self._log.say(
                f"profile of the steps to {step} written; to look at it: tensorboard --logdir={self._log.workdir.path}"
            )
        if step % self._config.logging.every == 0 or step == self._config.steps:
            self._write_row(step)
        return step

    def _fetch(self) -> None:
        """Adds the pending steps' metrics to the window; a loss or parameters that are not finite end the run here.

        float16 skips such a step; there, too many in a row end the run.
        """
        if self._pending is None:
            return
        (done, count, metrics), self._pending = self._pending, None
        metrics = {name: np.atleast_1d(values) for name, values in jax.device_get(metrics).items()}
        for k in range(count):
            values = {name: array[k].item() for name, array in metrics.items()}
            self._add_to_window(done + k + 1, values)
            self._agreed |= bool(values.get("stop"))
        self._log.step_done(done + count, values["loss"], values["correct"] / values["count"], values["learning_rate"])
        if self._window_clock[1] == 0:  # speed is counted from the end of the first dispatch, which compiles
            self._window_clock, self._feed.waited = (time.monotonic(), done + count), 0.0

    def _add_to_window(self, step: int, values: dict[str, float]) -> None:
        skipped = values.get("skipped")
        if skipped and values["skipped_in_a_row"] >= loss_scale.MOST_SKIPPED:
            many = f"{loss_scale.MOST_SKIPPED} steps in a row"
            raise UserError(f"step {step}: the loss or its gradient was not finite in {many}; {self._advice()}")
        for name in ("loss", "parameter_norm"):
            if not (skipped or math.isfinite(values[name])):
                raise UserError(f"step {step}: the {name} is {values[name]}; {self._advice()}")
        sums = {} if skipped else {"loss": values["loss"] * values["count"], **{n: values[n] for n in ("correct", "count")}}
        if skipped is not None:
            sums["skipped"] = skipped
        window = self._progress.window
        for name, value in sums.items():
            window[name] = window.get(name, 0) + value
        window["learning_rate"] = values["learning_rate"]

    def _advice(self) -> str:
        kept = self._checkpoints.steps()
        last = f"the last checkpoint is of step {kept[-1]}" if kept else "there is no checkpoint yet"
        return f"{last}. Try a lower optimizer.learning_rate or a longer warm-up"

    def _write_row(self, step: int) -> None:
        self._fetch()
        window, (since, first) = self._progress.window, self._window_clock
        if not window.get("count"):
            return  # all of its steps were skipped: they are counted in the next row
        now = time.monotonic()
        speed = (step - first) * self._config.batch_size / (now - since) if step > first else 0.0
        row = {"loss": window["loss"] / window["count"], "top1": window["correct"] / window["count"]}
        wait = self._feed.waited / (now - since) if step > first else 0.0
        row |= {"learning_rate": window["learning_rate"], "images_per_second": speed, "data_wait": wait}
        if (utilisation := self._cost.utilisation(speed)) is not None:
            row["utilisation"] = utilisation
        self._count_time()
        row["device_hours"] = self._progress.device_seconds / 3600
        row |= {"skipped": window["skipped"]} if "skipped" in window else {}
        self._log.write(step, "train", row)
        if wait > MOST_WAIT and not self._warned:
            self._warned = True
            self._log.say(
                f"warning: {100 * wait:.0f} % of the time was spent waiting for data. Try more data.threads or "
                "data.workers, data.antialias=False, images packed at a smaller size (python -m resnet_jax.data.prepare), "
                "or for a small set data.placement=device"
            )
        self._progress.window = {}
        self._window_clock, self._feed.waited = (now, step), 0.0

    def _evaluate(self, step: int) -> Scores:
        self._fetch()
        self._watch.beat(watchdog.PATIENCE)
        began = time.monotonic()
        try:
            scores = self._scores()
        except Stopped:
            self._agreed = True
            self._check_stop(step)
            raise
        if not math.isfinite(scores.loss):
            raise UserError(f"step {step}: the loss on the test images is {scores.loss}; {self._advice()}")
        self._log.write(step, "test", scores.as_metrics())
        self._log.draw()
        self._log.say(f"step {step}: test {scores}{f'; average: {scores.average}' if scores.average else ''}")
        self._window_clock = (self._window_clock[0] + time.monotonic() - began, self._window_clock[1])
        return scores

    def _poll(self) -> bool:
        self._watch.beat()
        return self._stop.requested()

    def _count_time(self) -> None:
        now = time.monotonic()
        self._progress.seconds += now - self._clock
        self._progress.device_seconds += (now - self._clock) * self._run.mesh.size
        self._clock = now

    def _score(self, state: TrainState) -> Scores:
        return evaluate(
            self._eval_fn,
            state,
            self._test_source,
            self._config,
            self._run.mesh,
            progress=self._log.interactive,
            should_stop=self._poll,
            skipped=self._skipped["test"],
        )

    def _scores(self) -> Scores:
        """Of the weights, of their average, or of both, as `average.evaluate` says."""
        if self._state.average is None:
            return self._score(self._state)
        scores = self._score(averages.scored(self._config.average, self._state))
        if self._config.average.evaluate == "beside":
            scores.average = self._score(averages.averaged(self._state))
        return scores

    def evaluate_precisely(self) -> None:
        """Scores the state with precise batch-norm statistics too, once; the state stays as it is."""
        step, images = int(self._state.step), self._config.evaluation.precise_images
        if parallel.agreed(self._log.evaluated(step, "precise")):
            return
        if self._eval_fn is None:
            self._compile_evaluation()
        self._watch.beat(watchdog.PATIENCE)
        state = averages.scored(self._config.average, self._run.for_checkpoint(self._state))
        alone = jax.process_count() == 1  # several do not stop in between: they would have to agree on a batch
        try:
            stats = statistics.precise_statistics(
                self._run, state, self._train_source, images, lambda: self._poll() and alone
            )
            self._watch.beat(watchdog.PATIENCE)
            scores = self._score(self._run.for_model(state.replace(batch_stats=stats)))
        except Stopped:
            self._agreed = True
            self._check_stop(step)
            raise
        self._log.write(step, "precise", scores.as_metrics())
        self._log.say(f"step {step}, batch-norm statistics of {images} training images: test {scores}")

    def _save(self, step: int, scores: Scores | None) -> None:
        self._fetch()  # nothing is saved whose loss is not known to be finite
        self._count_time()
        state = self._run.for_checkpoint(self._state)
        self._watch.beat(watchdog.PATIENCE)
        self._log.workdir.send()  # before the checkpoint is there: then the log knows all of its steps
        self._checkpoints.save(step, state, self._progress, scores.as_metrics() if scores else None)

    def _check_stop(self, step: int) -> None:
        if not (self._stop.requested() if jax.process_count() == 1 else self._agreed):
            return
        if step > 0 and step not in self._checkpoints.steps():
            self._save(step, None)
        self._checkpoints.wait()
        by = self._stop.name or "a signal to another process"
        if step == 0:
            raise Stopped(f"stopped by {by} before the first step; run the same command again to go on")
        raise Stopped(f"stopped by {by} at step {step}, saved; run the same command again to go on")


def _divides(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def train(config: TrainConfig, workdir: str | pathlib.Path, peer_timeout: float = 100) -> dict[str, float]:
    """Trains as a config says, in a workdir, from the last checkpoint there if there is one.

    The workdir gets config.json, checkpoints/, metrics.jsonl, curves.png and tensorboard/.

    Args:
      config: validated (`validation.validate`).
      workdir: the folder of this run, or `gs://BUCKET/PATH`; of several processes, one that all of them see.
      peer_timeout: seconds without progress after which one of several processes ends (`watchdog`).

    Returns:
      The scores on the held-out images after the last step: top1, top5, loss, images.

    Raises:
      UserError: bad data, config or workdir, or a loss that is not finite.
      Stopped: SIGTERM or Ctrl-C; the state is saved.
    """
    with workdirs.own(workdir, writes=parallel.is_main()) as place:
        train_source = experiment_lib.open_data(config, "train")
        test_source = experiment_lib.open_data(config, "val")
        run = experiment_lib.build(config, len(train_source.classes), train_source.channels, len(train_source))
        config = run.config
        validation.check_devices(config, run.mesh.size)
        watch = watchdog.Watchdog(peer_timeout if jax.process_count() > 1 else None)
        with StopSignal() as stop, Checkpoints(place.path, config.checkpoint) as checkpoints, watch:
            state, progress = start_state(run, train_source, checkpoints, place.path)
            start = int(state.step)
            with Logger(place, config, start, silent=not parallel.is_main()) as log:
                log.say(describe(run, train_source, test_source, state))
                log.say(f"resumed from step {start} of {config.steps}" if start else f"training {config.steps} steps")
                trainer = Trainer(run, train_source, test_source, checkpoints, log, stop, watch, state, progress)
                trained = trainer.run()
                if config.evaluation.precise_images:
                    trainer.evaluate_precisely()
                log.draw()
                final = log.last_scores()
                if not parallel.is_main():
                    return final
                right = round(final["top1"] * final["images"])
                log.say(
                    f"{'finished' if trained else 'was already finished'} after {progress.seconds:.0f} s of training, "
                    f"{progress.device_seconds / 3600:.3g} device-hours; results in {place.path}\n"
                    f"test top-1 {100 * final['top1']:.2f} % ({right}/{final['images']})"
                    + (f"; NOT SCORED: {final['skipped']} broken images" if "skipped" in final else "")
                )
    return final
