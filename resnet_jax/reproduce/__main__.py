"""Runs or resumes the paper's CIFAR-10 experiments (section 4.2), and draws their tables and pictures.

    python -m resnet_jax.reproduce table6 --data=PATH --workdir=FOLDER              # figure6, figure7, shortcuts
    python -m resnet_jax.reproduce report                                           # only draw what is there

Stop it any time (Ctrl-C, SIGTERM, kill -9) and run the same command again: it goes on where it was.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from resnet_jax.data import sources
from resnet_jax.errors import UserError, one_line_errors
from resnet_jax.reproduce import report, runner
from resnet_jax.reproduce.experiments import CONFIGS, TARGETS, Network, Recipe, chosen_networks
from resnet_jax.reproduce.results import Results
from resnet_jax.reproduce.runner import Run

EXIT_FAILED = 1


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and those that go to the runs (--config.FIELD=VALUE)."""
    parser = argparse.ArgumentParser(
        "python -m resnet_jax.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.FIELD=VALUE changes a field of every run; it is named in `recipe` if it changes numbers.",
    )
    parser.add_argument("target", choices=(*TARGETS, "report"))
    parser.add_argument("--workdir", type=pathlib.Path, help="folder for checkpoints and logs, a folder per run below it")
    parser.add_argument("--data", help="CIFAR-10's folder")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2 (0)")
    parser.add_argument("--networks", help="some of the target's networks, such as resnet20,resnet56 (all)")
    parser.add_argument(
        "--divide", type=int, default=1, help="divide all durations of the schedule by this (1: the paper's)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--precise-images", type=int, default=10_000, help="for precise batch norm; 0: without (10,000)")
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("results/cifar10.csv"), help="the rows' file")
    parser.add_argument("--docs", type=pathlib.Path, help="a page whose marked tables are renewed: docs/reproduction.md")
    args, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith("--config.") or "=" not in argument:
            parser.error(f"unknown argument {argument!r}")
    return args, rest


def plan(args: argparse.Namespace, overrides: Sequence[str]) -> list[Run]:
    """The runs that a command line asks for: seed after seed, and the 1202 layers last.

    Raises:
      UserError: missing or wrong flags.
    """
    if not args.workdir or not args.data:
        raise UserError(f"{args.target} needs --workdir=FOLDER for its checkpoints and --data=PATH of CIFAR-10")
    if ":/" in str(args.workdir):
        raise UserError(f"--workdir={args.workdir}: must be a folder; experiments run on local disks")
    if not CONFIGS.is_dir():
        raise UserError(f"{CONFIGS}: no such folder; run this command in a checkout of the repository")
    for name, low, high in (("divide", 1, 10_000), ("jobs", 1, 64), ("precise_images", 0, 10**9)):
        if not low <= getattr(args, name) <= high:
            raise UserError(f"--{name.replace('_', '-')}={getattr(args, name)}: must be from {low} to {high}")
    try:
        seeds = sorted({int(seed) for seed in args.seeds.split(",")})
    except ValueError:
        raise UserError(f"--seeds={args.seeds}: expected whole numbers with commas between them") from None
    fields = (override.removeprefix("--config.").partition("=") for override in overrides)
    recipe = Recipe(args.divide, tuple(sorted((name, value) for name, _, value in fields)))
    networks, data = chosen_networks(args.target, args.networks), str(pathlib.Path(args.data).resolve())
    order = sorted(((network.depth > 1000, seed, i) for seed in seeds for i, network in enumerate(networks)))
    return [_make(args, networks[i], recipe, seed, data) for _, seed, i in order]


def _make(args: argparse.Namespace, network: Network, recipe: Recipe, seed: int, data: str) -> Run:
    workdir = args.workdir.resolve() / recipe.folder(network) / f"{network.name}_seed{seed}"
    extra = [f"--precise_images={args.precise_images}"]
    if network.depth > 1000 and "model.scan_blocks" not in dict(recipe.overrides) and _has_accelerator():
        extra.append("--config.model.scan_blocks=True")  # compiles in seconds; on CPU its loops are slow
    return Run(network, recipe, seed, workdir, data, tuple(extra))


def _has_accelerator() -> bool:
    """Asked of another process: JAX in this one would take the GPU's memory."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() not in ("cpu", "")


def reproduce(args: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """Runs what has no row yet, adds the rows, draws. Returns what failed."""
    results = Results(args.results)
    if args.target == "report":
        print(report.renew(results, args.docs))
        return []
    runs = plan(args, overrides)
    sources.cifar10(args.data, "val")  # better now than in every run

    def add(run: Run, result: dict[str, Any]) -> str:
        together = f", {args.jobs} runs at once" if args.jobs > 1 and not result["commit"].startswith("measured") else ""
        result = result | {"device": result["device"] + together}
        row = results.add(run.key(), run.recipe.steps(run.network), result, run.workdir, run.recipe.folder(run.network))
        report.renew(results, args.docs)
        return f"done; test error {row['test_error']} %, training error {row['train_error']} %, {row['seconds']} s"

    todo = []
    for run in runs:
        if row := results.find(run.key()):
            print(f"{run}: is in {args.results} already; test error {row['test_error']} %")
        elif result := run.result():
            print(f"{run}: {add(run, result)}")
        else:
            todo.append(run)
    try:
        failed = runner.run_all(todo, args.jobs, add, lambda line: print(line, flush=True))
    finally:
        print(report.renew(results, args.docs), flush=True)
    return failed


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args, overrides = parse_args(argv)
    with one_line_errors():
        failed = reproduce(args, overrides)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(EXIT_FAILED if failed else 0)


if __name__ == "__main__":
    main()
