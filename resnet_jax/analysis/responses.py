"""Layer responses (Fig. 7): how strongly each 3x3 layer answers, as the standard deviation of its output.

python -m resnet_jax.analysis.responses --workdir=RUN [MORE RUNS] [--data=PATH] [--images=N] [--output=responses]

"The std is of each 3x3 layer's output, after BN and before nonlinearity" and, where a shortcut joins, before the addition:
one number per layer, over all test images, positions and channels, with the running statistics. Writes OUTPUT.csv and
OUTPUT.png: above in the layers' order, below sorted.
"""

import argparse
import csv
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from matplotlib.figure import Figure

from resnet_jax import config as config_lib
from resnet_jax import host, parallel, validation
from resnet_jax.data import augment, pipeline
from resnet_jax.data.normalize import normalize
from resnet_jax.data.sources import Record, Source
from resnet_jax.errors import UserError, one_line_errors
from resnet_jax.evaluation.moments import Moments
from resnet_jax.evaluation.statistics import normalised_positions
from resnet_jax.models.layers import BatchNorm, at_least_float32
from resnet_jax.models.resnet import ResNet
from resnet_jax.training import workdir as workdirs
from resnet_jax.training.experiment import Experiment, open_data
from resnet_jax.training.state import TrainState

Path = tuple[str, ...]
COLUMNS = ("network", "layer", "name", "std")


@dataclasses.dataclass(frozen=True)
class Spread:
    """`count` images spread evenly over a source: where it is sorted by class, the first ones would be of one class."""

    source: Source
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return self.source[index * len(self.source) // self.count]


def three_by_three_layers(model: ResNet, params: Any) -> list[Path]:
    """The batch norms behind 3x3 convolutions, from input to output, such as ('stage1', 'block1', 'bn1').

    Projections are 1x1 and ImageNet's first layer is 7x7: neither is among them.
    """
    kernels = traverse_util.flatten_dict(params)
    stages = [
        (f"stage{stage}", f"block{block}", f"conv{conv}", "kernel")
        for stage, size in enumerate(model.architecture.stage_sizes, 1)
        for block in range(1, size + 1)
        for conv in range(1, 4)
    ]
    chosen = [
        path for path in [("stem", "conv", "kernel"), *stages] if path in kernels and kernels[path].shape[:2] == (3, 3)
    ]
    return [(*path[:-2], path[-2].replace("conv", "bn")) for path in chosen]


def compile_moments_step(run: Experiment, layers: Sequence[Path]) -> Callable[..., list[tuple[jax.Array, jax.Array]]]:
    """A function of (params, batch_stats, pixels, batch) that gives, for every layer, mean and squares of each image.

    Both are `[batch]`: an image's mean response, and its summed squared deviations from that. Sums over a whole batch would
    have more terms than float32 can count.
    """
    model = run.model.clone(scan_blocks=False)

    def moments(response: jax.Array) -> tuple[jax.Array, jax.Array]:
        response = response.astype(at_least_float32(response.dtype))
        mean = response.mean((1, 2, 3), keepdims=True)
        return mean[:, 0, 0, 0], jnp.square(response - mean).sum((1, 2, 3))

    def step(params: Any, batch_stats: Any, pixels: dict[str, jax.Array], batch: dict[str, jax.Array]) -> list:
        images = normalize(batch, pixels["mean"], pixels["std"], run.config.data.pad)
        chosen = {"capture_intermediates": lambda module, _: isinstance(module, BatchNorm), "mutable": ["intermediates"]}
        _, taken = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False, **chosen)
        outputs = traverse_util.flatten_dict(taken["intermediates"])
        return [moments(outputs[*path, "__call__"][0]) for path in layers]

    rep = parallel.replicated(run.mesh)
    return jax.jit(step, in_shardings=(rep, rep, rep, parallel.by_batch(run.mesh)), out_shardings=rep)


def responses(run: Experiment, state: TrainState, source: Source) -> dict[str, float]:
    """The standard deviation of every 3x3 layer's output, `{'stem/bn': 1.02, 'stage1/block1/bn1': ...}`, in order.

    Args:
      run: the experiment.
      state: as checkpoints hold it, replicated over the mesh.
      source: the images, each taken once, with the view of a test.
    """
    config = run.config
    layers = three_by_three_layers(run.model, state.params)
    totals, step_fn = {path: Moments() for path in layers}, compile_moments_step(run, layers)
    scales = traverse_util.flatten_dict(state.params)
    positions = normalised_positions(run.model, (config.test_size(), config.test_size(), run.channels))
    values = {path: positions[path] * scales[*path, "scale"].size for path in layers}  # of one image
    batch_size = parallel.round_up(min(config.evaluation.batch_size, len(source)), run.mesh)
    rows, skip = parallel.local_rows(run.mesh, batch_size), config.data.on_error == "skip"
    batches = pipeline.EvalBatches(source, augment.eval_transform(config), batch_size, rows, skip)
    with pipeline.iterate(batches, 0, config.data, pipeline.Skipped()) as iterator:
        for batch in iterator:
            mask = batch["mask"]
            batch = parallel.put_batch(batch, run.mesh, batch_size)
            parts = jax.device_get(step_fn(state.params, state.batch_stats, state.pixels, batch))
            for path, (mean, squares) in zip(layers, parts, strict=True):
                mean, squares = np.float64(mean)[mask], np.float64(squares)[mask]
                if len(mean):
                    between = values[path] * np.square(mean - mean.mean()).sum()
                    totals[path].add(len(mean) * values[path], mean.mean(), squares.sum() + between)
    return {"/".join(path): float(total.variance(unbiased=False)) ** 0.5 for path, total in totals.items()}


def write_csv(found: dict[str, dict[str, float]], path: pathlib.Path) -> None:
    """Writes `{network: responses}` as rows of COLUMNS, layers numbered from 1."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for network, layers in found.items():
            writer.writerows((network, i, name, f"{std:.6g}") for i, (name, std) in enumerate(layers.items(), 1))
    temporary.replace(path)


def draw_responses(found: dict[str, list[float]], path: pathlib.Path) -> None:
    """Fig. 7: `{network: standard deviations in order}`; plain networks dashed."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1)
    for network, deviations in found.items():
        style = {"label": network, "ls": "--" if "plain" in network else "-", "lw": 1.2}
        layers = range(1, len(deviations) + 1)
        above.plot(layers, deviations, **style)
        below.plot(layers, sorted(deviations, reverse=True), **style)
    for axes, name in ((above, "layer, in order"), (below, "layer, sorted by response")):
        axes.set(xlabel=name, ylabel="standard deviation", ylim=(0, None))
        axes.grid(alpha=0.3)
    above.legend()
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)


def _label(workdir: epath.Path, config: config_lib.TrainConfig, taken: dict[str, Any]) -> str:
    name = config.model.name
    return name if name not in taken else f"{name} ({workdir})"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python -m resnet_jax.analysis.responses", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=epath.Path, required=True, help="of a run")
    parser.add_argument("more", type=epath.Path, nargs="*", help="workdirs of more runs")
    parser.add_argument("--data", help="where the data is, if it has moved since")
    parser.add_argument("--images", type=int, help="so many of the test images, spread evenly (all)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("responses"), help="name of .csv and .png")
    args = parser.parse_args(argv)
    with one_line_errors():
        if args.images is not None and args.images < 1:
            raise UserError(f"--images={args.images}: must be at least 1")
        found = {}
        for workdir in [args.workdir, *args.more]:
            with workdirs.reached(workdir):
                config = config_lib.load(workdir / "config.json")
            config.data.root = args.data or config.data.root
            validation.validate(config)
            if not found:
                host.use_all_cores(config)
            found[_label(workdir, config, found)] = of_run(config, workdir, args.images)
        try:
            write_csv(found, args.output.with_suffix(".csv"))
            draw_responses({name: list(layers.values()) for name, layers in found.items()}, args.output.with_suffix(".png"))
        except OSError as error:
            raise UserError(f"--output={args.output}: cannot write there ({error})") from error
        for name, layers in found.items():
            print(f"{name}: {len(layers)} layers, mean response {sum(layers.values()) / len(layers):.3f}")
        print(f"{args.output.with_suffix('.csv')}, {args.output.with_suffix('.png')}")


def of_run(
    config: config_lib.TrainConfig, workdir: pathlib.Path | epath.Path, images: int | None = None
) -> dict[str, float]:
    """`responses` of the last checkpoint of a run, on its test images or so many of them."""
    from resnet_jax.evaluation.run import restore_checkpoint

    _, run, state = restore_checkpoint(config, workdir)
    source = open_data(config, "val")
    return responses(run, state, source if images is None else Spread(source, min(images, len(source))))


if __name__ == "__main__":
    main()
