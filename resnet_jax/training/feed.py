"""What brings the training step its batches: a stream from the host, or a data set that lives on the device.

A feed is a context manager, and a function of the state, the steps made, a step to go to at most, and whether this process
wants to stop (which all must do after the same step: the metrics say `stop` then). It makes one step or several, without
waiting for them, and returns the new state, the metrics (of each step, if it can make several) and the number of steps made.
"""

import contextlib
import time
from types import TracebackType

import jax
import numpy as np

from resnet_jax import parallel
from resnet_jax.data import pipeline, resident
from resnet_jax.data.sources import Source
from resnet_jax.training import step as step_lib
from resnet_jax.training.compiled import abstract_batch, train_step
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.state import TrainState

MOST_STEPS = 100  # of one dispatch, unless the config says otherwise


class Streamed(contextlib.ExitStack):
    """Batches from the host, loaded ahead by threads or processes.

    Attributes:
      waited: seconds that the host waited for data since this was last set to 0.
    """

    def __init__(self, run: Experiment, source: Source, start: int, skipped: pipeline.Skipped):
        """Args: the run; its training images; the steps made; who is told of broken images."""
        super().__init__()
        config = run.config
        self._run, self.waited = run, 0.0
        self._step = step_lib.compile_train_step(train_step(run), run.mesh)
        rows = parallel.local_rows(run.mesh, config.batch_size)
        batches = pipeline.train_batches(config, source, rows, max(config.steps, start))
        self._iterator = self.enter_context(pipeline.iterate(batches, start, config.data, skipped))

    def compile(self, state: TrainState) -> jax.stages.Compiled:
        """Compiles the step for such a state, now instead of at the first one, and returns the program that will run."""
        self._step = self._step.lower(state, abstract_batch(self._run)).compile()
        return self._step

    def __call__(self, state: TrainState, done: int, until: int, stop: bool) -> tuple[TrainState, step_lib.Metrics, int]:
        """Makes one step."""
        del done, until
        began = time.monotonic()
        batch = next(self._iterator)
        batch = parallel.with_wish(batch, stop, batch["label"].shape)
        self.waited += time.monotonic() - began
        with jax.transfer_guard("disallow"):
            # This copy runs while the device makes the step before, which nobody has waited for yet.
            state, metrics = self._step(state, parallel.put_batch(batch, self._run.mesh, self._run.config.batch_size))
        return state, metrics, 1


class Resident:
    """The whole data set on every device (`data.placement='device'`): the host sends indices, for many steps at once.

    Attributes:
      waited: always 0.
    """

    def __init__(self, run: Experiment, source: Source):
        """Args: the run; its training images."""
        config, self._mesh, self.waited = run.config, run.mesh, 0.0
        self._most = steps_at_once(run)
        self._order = resident.Order(len(source), config.batch_size, config.seed, config.data.repeats)
        self._store = parallel.put_replicated(resident.load(source, config.data.image_size), run.mesh)
        make = resident.augmenter(config.data, config.seed)
        self._steps = step_lib.compile_resident_steps(train_step(run), make, run.mesh, self._most)

    def __enter__(self) -> "Resident":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def compile(self, state: TrainState) -> jax.stages.Compiled:
        """Compiles the steps for such a state, now instead of at the first ones, and returns the program that will run."""
        shape = (self._most, self._order.batch_size)
        indices = jax.ShapeDtypeStruct(shape, np.int32, sharding=parallel.by_column(self._mesh))
        rows = {name: indices for name in parallel.with_wish({"index": indices}, False, shape)}
        count = jax.ShapeDtypeStruct((), np.int32, sharding=parallel.replicated(self._mesh))
        self._steps = self._steps.lower(state, self._store, rows, count).compile()
        return self._steps

    def __call__(self, state: TrainState, done: int, until: int, stop: bool) -> tuple[TrainState, step_lib.Metrics, int]:
        """Makes all steps to `until`, or as many as one dispatch has."""
        count = min(until - done, self._most)
        indices = np.zeros((self._most, self._order.batch_size), np.int32)
        indices[:count] = self._order(done, count)
        with jax.transfer_guard("disallow"):
            rows = parallel.put_columns(parallel.with_wish({"index": indices}, stop, indices.shape), self._mesh)
            state, metrics = self._steps(state, self._store, rows, parallel.put_replicated(np.int32(count), self._mesh))
        return state, metrics, count


def steps_at_once(run: Experiment) -> int:
    """Steps of one dispatch with the data on the device: on CPU one, since XLA runs convolutions in loops slowly there."""
    if run.config.steps_per_dispatch is not None:
        return run.config.steps_per_dispatch
    return 1 if run.mesh.devices.flat[0].platform == "cpu" else MOST_STEPS


def open_feed(run: Experiment, source: Source, start: int, skipped: pipeline.Skipped) -> Streamed | Resident:
    """The feed that a config asks for (`data.placement`)."""
    return Resident(run, source) if run.config.data.placement == "device" else Streamed(run, source, start, skipped)
