"""Tables and pictures, drawn from the rows and curves in results/ alone."""

import os
import pathlib
import statistics
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from resnet_jax.analysis.responses import draw_responses
from resnet_jax.errors import UserError
from resnet_jax.reproduce.experiments import AKAMASTER, FIGURE7, PAPER, PLAIN, RESNETS, SHORTCUTS, Network
from resnet_jax.reproduce.results import Results, Row

BEGIN, END = "<!-- tables: begin (python -m resnet_jax.reproduce report --docs=THIS FILE) -->", "<!-- tables: end -->"
PARAMETERS = {20: "0.27 M", 32: "0.46 M", 44: "0.66 M", 56: "0.85 M", 110: "1.7 M", 1202: "19.4 M"}  # as in Table 6
NOT_RUN = "not run yet"
PAPER_SCHEDULE = "64000_steps"
POINTS = 100  # of a training curve, each the mean of some rows


def renew(results: Results, docs: pathlib.Path | None = None) -> str:
    """Writes results/cifar10.md and the pictures beside it, and the tables in `docs` between its two marks.

    Returns:
      The tables, as text, with the names of the pictures.

    Raises:
      UserError: a file cannot be written, or `docs` has no such marks.
    """
    rows, page = results.rows(), results.path.with_suffix(".md")
    try:
        pictures = {schedule: _draw(results, schedule, rows) for schedule in schedules(rows)}
        if rows:
            _write(page, tables(results, pictures, page))
        if docs is not None:
            before, begin, rest = docs.read_text().partition(BEGIN)
            _, end, after = rest.partition(END)
            if not begin or not end:
                raise UserError(f"--docs={docs}: the lines {BEGIN!r} and {END!r} are missing")
            _write(docs, f"{before}{BEGIN}\n\n{tables(results, {PAPER_SCHEDULE: []} | pictures, docs)}\n{END}{after}")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error
    return f"{tables(results, pictures, page)}\n{page} has these tables" if rows else f"{results.path}: no rows yet"


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def schedules(rows: Sequence[Row]) -> list[str]:
    """What rows share that may be compared: '64000_steps', '1000_steps', ...; the longest first."""
    return sorted({_schedule(row) for row in rows}, key=lambda name: (-int(name.partition("_")[0]), name))


def _schedule(row: Row) -> str:
    return row["curve"].partition("/")[0]


def of_network(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of a network, seed by seed."""
    network = Network(name)
    found = [row for row in rows if (row["network"], row["shortcut"]) == (network.stem, network.shortcut)]
    return sorted(found, key=lambda row: int(row["seed"]))


def summary(rows: Sequence[Row], column: str) -> str:
    """'8.75', '8.75 ± 0.12' (mean and standard deviation of the sample) or NOT_RUN."""
    values = [float(row[column]) for row in rows if row[column]]
    if not values:
        return NOT_RUN if not rows else "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; '' where it has no rows."""
    lines = [head, ["---"] * len(head), *body] if body else []
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _table6(rows: Sequence[Row], names: Sequence[str]) -> str:
    body = []
    for name in (name for name in RESNETS if name in names):
        depth, found = Network(name).depth, of_network(rows, name)
        paper = f"{PAPER[depth]:.2f}" + (" (best of five; mean 6.61 ± 0.16)" if depth == 110 else "")
        columns = [summary(found, column) for column in ("test_error", "test_error_precise", "train_error")]
        body.append([depth, PARAMETERS[depth], paper, f"{AKAMASTER[depth]:.2f}", *columns, _seeds(found)])
    head = [
        "layers",
        "parameters",
        "paper",
        "akamaster (best epoch)",
        "ours",
        "precise batch norm",
        "training error",
        "seeds",
    ]
    return _markdown(head, body)


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(row["seed"] for row in rows) or "-"


def _degradation(rows: Sequence[Row], names: Sequence[str]) -> str:
    body = []
    for name in (name for name in (*PLAIN, *RESNETS) if name in names):
        found = of_network(rows, name)
        columns = [summary(found, column) for column in ("train_error", "train_error_running", "train_loss", "test_error")]
        body.append([name, *columns, _seeds(found)])
    return _markdown(["network", "training error", "the same, running", "training loss", "test error", "seeds"], body)


def _shortcuts(rows: Sequence[Row], names: Sequence[str]) -> str:
    body = []
    for depth in sorted({Network(name).depth for name in SHORTCUTS if name in names and Network(name).shortcut != "A"}):
        found = [of_network(rows, name) for name in SHORTCUTS if Network(name).depth == depth]
        seeds = "; ".join(_seeds(each) for each in found)
        body.append([depth, *(summary(each, "test_error") for each in found), seeds])
    return _markdown(["layers", "A", "B", "C", "seeds of A; B; C"], body)


def _responses(results: Results, rows: Sequence[Row], names: Sequence[str]) -> str:
    body = []
    for name in (name for name in FIGURE7 if name in names):
        found = [values for row in of_network(rows, name) if (values := results.responses(row))]
        means = ", ".join(f"{statistics.mean(values):.3f}" for values in found) or NOT_RUN
        medians = ", ".join(f"{statistics.median(values):.3f}" for values in found) or NOT_RUN
        body.append([name, len(found[0]) if found else "-", means, medians])
    return _markdown(["network", "3x3 layers", "mean response, seed by seed", "median"], body)


def tables(results: Results, pictures: dict[str, list[pathlib.Path]], page: pathlib.Path) -> str:
    """All tables, schedule by schedule, in Markdown: of the paper's also what has not run, of others what has.

    Args:
      results: the rows.
      pictures: of each schedule that is to be there.
      page: where the text will be, for the links.
    """
    parts = [
        "Errors in percent; test error after the last step; mean ± standard deviation where there are several seeds. "
        "Training error: all training images, without augmentation; running: the last window of the log."
    ]
    rows = results.rows()
    for schedule in pictures:
        chosen = [row for row in rows if _schedule(row) == schedule]
        recipe = min((row["recipe"] for row in chosen), key=len, default="paper")
        everything = (*PLAIN, *RESNETS, *SHORTCUTS)
        names = everything if schedule == PAPER_SCHEDULE else [name for name in everything if of_network(chosen, name)]
        parts.append(f"### {recipe}: {schedule.partition('_')[0]} steps")
        if recipe != "paper":
            parts.append("(A shortened or changed recipe: the paper's and akamaster's numbers are with 64,000 steps.)")
        for title, table in (
            ("Table 6, ResNets with option A:", _table6(chosen, names)),
            ("Figure 6, plain networks and ResNets:", _degradation(chosen, names)),
            ("Shortcuts (section 4.1), test error:", _shortcuts(chosen, names)),
            ("Figure 7, layer responses (standard deviations):", _responses(results, chosen, names)),
        ):
            parts += [title, table] if table else []
        parts += [f"![{path.stem}]({os.path.relpath(path, page.parent)})" for path in pictures[schedule]]
    return "\n\n".join(parts) + "\n"


def _draw(results: Results, schedule: str, rows: Sequence[Row]) -> list[pathlib.Path]:
    """Figures 6 and 7 of a schedule, as far as there is something to draw."""
    chosen, drawn = [row for row in rows if _schedule(row) == schedule], []
    folder, stem = results.path.parent, results.path.stem
    if any(results.curve(row) for name in (*PLAIN, *RESNETS) for row in of_network(chosen, name)):
        path = folder / f"{stem}_{schedule}_figure6.png"
        draw_figure6(lambda name: [results.curve(row) for row in of_network(chosen, name)], path)
        drawn.append(path)
    found = {name: [v for row in of_network(chosen, name) if (v := results.responses(row))] for name in FIGURE7}
    if any(found.values()):
        path = folder / f"{stem}_{schedule}_figure7.png"
        draw_responses({name: values[0] for name, values in found.items() if values}, path)
        drawn.append(path)
    return drawn


def draw_figure6(curves_of: Callable[[str], list[list[dict]]], path: pathlib.Path) -> None:
    """Fig. 6: errors over iterations, training dashed, test bold; plain networks, ResNets, and 110 beside 1202 layers.

    Args:
      curves_of: of a network's name, the curves of its seeds (`Results.curve`).
      path: of the picture.
    """
    panels = [names for names in (PLAIN, RESNETS[:-1]) if any(map(curves_of, names))]
    panels += [RESNETS[-2:]] if curves_of(RESNETS[-1]) else []
    top = 0.0
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for axes, names in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for colour, name in enumerate(names):
            for seed, rows in enumerate(curves_of(name)):
                train = thinned([(row["step"], row["error"]) for row in rows if row["split"] == "train"])
                test = [(row["step"], row["error"]) for row in rows if row["split"] == "test"]
                top = max(top, min(100, 2.5 * test[-1][1]))  # the paper's axes, too, leave the first steps out
                axes.plot(*zip(*train, strict=True), color=f"C{colour}", lw=0.8, ls="--")
                axes.plot(*zip(*test, strict=True), color=f"C{colour}", lw=2, label=None if seed else name)
        axes.set(xlabel="iteration", ylabel="error (%)", ylim=(0, top))
        axes.grid(alpha=0.3)
        axes.legend(title="test bold, training dashed")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS points: means of equally many neighbours, each at its last step."""
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(group[-1][0], statistics.mean(value for _, value in group)) for group in groups]
