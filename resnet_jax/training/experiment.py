"""What a config builds: data, network, optimizer, on a mesh. Training and evaluation start from the same."""

import copy
import dataclasses

import jax
import optax
from jax.sharding import Mesh

from resnet_jax import config as config_lib
from resnet_jax import parallel
from resnet_jax.config import TrainConfig
from resnet_jax.data import normalize, sources
from resnet_jax.data.sources import Source
from resnet_jax.errors import UserError
from resnet_jax.models import resnet
from resnet_jax.models.blocks import stack_blocks, unstack_blocks
from resnet_jax.models.resnet import ResNet
from resnet_jax.training import loss_scale
from resnet_jax.training.optimizers import make_optimizer
from resnet_jax.training.schedules import Schedule, make_schedule
from resnet_jax.training.state import TrainState, abstract_state


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything about a run but its state.

    Attributes:
      config: validated, with the number of classes filled in.
      mesh: the devices.
      model, optimizer, schedule: as the config says.
      channels: of the images.
    """

    config: TrainConfig
    mesh: Mesh
    model: ResNet
    optimizer: optax.GradientTransformation
    schedule: Schedule
    channels: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one input."""
        return (self.config.data.image_size, self.config.data.image_size, self.channels)

    def abstract_state(self) -> TrainState:
        """What a checkpoint of this run is restored into: replicated over the mesh."""
        pixels, sharding = normalize.statistics_shapes(self.config.data, self.channels), parallel.replicated(self.mesh)
        state = self.complete(abstract_state(self.model, self.optimizer, self.image_shape, pixels, sharding))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)

    def complete(self, state: TrainState) -> TrainState:
        """A state before the first step, with what the config's options keep beside the weights."""
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        return state.replace(
            average=jax.tree.map(copy.copy, weights) if self.config.average.decay else None,
            schedule=self.schedule.init(),
            loss_scale=loss_scale.init() if self.config.model.dtype == "float16" else None,
        )

    def for_model(self, state: TrainState) -> TrainState:
        """A state as checkpoints hold it, unrolled, in the form that the model wants."""
        return stack_blocks(state) if self.model.scan_blocks else state

    def abstract_model_state(self) -> TrainState:
        """Shapes, dtypes and sharding of what `for_model` gives."""
        shapes = jax.eval_shape(self.for_model, self.abstract_state())
        rep = parallel.replicated(self.mesh)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rep), shapes)

    def for_checkpoint(self, state: TrainState) -> TrainState:
        """The inverse of `for_model`."""
        return unstack_blocks(state) if self.model.scan_blocks else state


def open_data(config: TrainConfig, split: str) -> Source:
    """The data set of a split ('train' or 'val'), checked against the network's classes.

    Raises:
      UserError: missing or malformed data, or another number of classes than `model.num_classes`.
    """
    source = sources.open_source(config.data, split, config.test_resize() or config.test_size())
    wanted = config.model.num_classes
    if wanted is not None and wanted != len(source.classes):
        raise UserError(
            f"model.num_classes={wanted}, but {config.data.source} data "
            f"{f'in {config.data.root} ' if config.data.root else ''}has {len(source.classes)} classes; "
            "set it to that number, or leave it None"
        )
    return source


def build(
    config: TrainConfig, num_classes: int, channels: int, images: int | None = None, mesh: Mesh | None = None
) -> Experiment:
    """Builds the experiment of a validated config for data with so many classes and channels.

    To train, it needs the number of training images too, unless all durations are in steps. `mesh`: of other devices than
    the config's.
    """
    mesh = mesh or parallel.make_mesh(config.devices)
    config = config_lib.resolved(config, num_classes, images)
    scale = config.batch_size / (config.optimizer.learning_rate_per or config.batch_size)
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, config.steps, scale)
    return Experiment(
        config=config,
        mesh=mesh,
        model=resnet.build(config.model, config.batch_norm, num_classes),
        optimizer=make_optimizer(config.optimizer),
        schedule=schedule,
        channels=channels,
    )
