"""Mean and spread over seeds, as a table, CSV and a plot: ``python -m mflight.compare RUNS...``."""

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mflight.mistakes import tells_mistakes
from mflight.training.compared_runs import Group, find_runs, group_runs

FIGURES = ("AP", "APr", "APc", "APf")
CSV_FILE, PLOT_FILE = "compare.csv", "compare.png"


def compare(runs: Sequence[Path], output: Path, iou_type: str = "segm") -> tuple[list[Group], list[Path]]:
    """Group runs by the settings that differ, the seed aside, and write ``compare.csv`` and ``compare.png``.

    Args:
        runs: run folders, or folders that hold some, such as that of a sweep.
        output: folder to write into; made if it is not there.
        iou_type: ``"segm"`` for masks, ``"bbox"`` for boxes.

    Returns:
        the groups in the order in which they were found, and the runs left out: without results or figures.

    Raises:
        FileNotFoundError: if there is no finished run.
    """
    found, unfinished = find_runs(runs)
    key = f"val/{iou_type}/{FIGURES[0]}"
    unfinished += [run.folder for run in found if key not in run.figures]
    groups = group_runs([run for run in found if key in run.figures])
    if not groups:
        raise FileNotFoundError(
            f"compare needs a finished run with {key}, found none in {', '.join(map(str, runs))}"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / CSV_FILE, groups, iou_type)
    draw_plot(output / PLOT_FILE, groups, iou_type)
    return groups, unfinished


def values_of(group: Group, iou_type: str, figure: str) -> list[float]:
    """Return a figure of each run, in percent; LVIS's -1, nothing to average, is left out."""
    values = [run.figures.get(f"val/{iou_type}/{figure}", -1.0) for run in group.runs]
    return [value for value in values if value >= 0.0]


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; ``None`` where there are too few values for one."""
    mean = statistics.mean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def comparison_table(groups: Sequence[Group], iou_type: str) -> Table:
    """Lay out the groups: a column for each setting that differs, the seeds, and each figure."""
    table = Table(title="LVIS validation, percent: mean ± standard deviation over the runs")
    for heading in _headings(list(groups[0].settings)) or ["runs"]:
        table.add_column(heading, overflow="fold")
    table.add_column("seeds")
    for figure in FIGURES:
        table.add_column(figure, justify="right", style="bold" if figure == "APr" else None)
    for group in groups:
        cells = [_mean_cell(values_of(group, iou_type, figure)) for figure in FIGURES]
        table.add_row(*(group.settings.values() or ["all"]), _seeds(group), *cells)
    return table


def write_csv(file: Path, groups: Sequence[Group], iou_type: str) -> None:
    """Write a row for each group: settings, seeds, runs, mean and standard deviation of each figure."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        statistic_names = [f"{figure}_{kind}" for figure in FIGURES for kind in ("mean", "std")]
        writer.writerow([*groups[0].settings, "seeds", "num_runs", *statistic_names])
        for group in groups:
            pairs = [mean_and_spread(values_of(group, iou_type, figure)) for figure in FIGURES]
            cells = ["" if value is None else f"{value:.4f}" for pair in pairs for value in pair]
            writer.writerow([*group.settings.values(), _seeds(group), len(group.runs), *cells])


def draw_plot(file: Path, groups: Sequence[Group], iou_type: str) -> None:
    """Draw a panel for each figure: a dot for each run, mean and standard deviation for each group."""
    from matplotlib.figure import Figure

    labels = [group.label for group in groups]
    places, is_number = _places(labels)
    figure = Figure(figsize=(3.2 * len(FIGURES), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(FIGURES)), FIGURES, strict=True):
        for place, group in zip(places, groups, strict=True):
            values = values_of(group, iou_type, name)
            mean, spread = mean_and_spread(values)
            axes.plot([place] * len(values), values, "o", color="tab:gray", alpha=0.5, markersize=4)
            if mean is not None:
                axes.errorbar(place, mean, yerr=spread or 0.0, fmt="s", color="tab:blue", capsize=4)
        axes.set_title(name)
        axes.grid(axis="y", alpha=0.3)
        axes.set_xticks(
            places, labels, rotation=0 if is_number else 30, ha="center" if is_number else "right"
        )
        axes.margins(x=0.1)
    figure.supxlabel(", ".join(groups[0].settings))
    figure.supylabel(f"{'mask' if iou_type == 'segm' else 'box'} AP, percent")
    figure.savefig(file, dpi=150)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``None`` takes that of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mflight.compare",
        description="Mean and spread of AP, APr, APc and APf over the seeds of runs with equal settings.",
    )
    parser.add_argument(
        "runs", metavar="RUNS", nargs="+", type=Path, help="run folders, or the folder of a sweep"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help=f"where {CSV_FILE} and {PLOT_FILE} are written (default: the first of RUNS)",
    )
    parser.add_argument("--iou-type", choices=("segm", "bbox"), default="segm", help="masks or boxes")
    return parser.parse_args(arguments)


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; ``None`` takes those of the process.
    """
    args = parse_arguments(arguments)
    output = args.output or args.runs[0]
    groups, left_out = compare(args.runs, output, args.iou_type)
    console = Console(soft_wrap=True)
    console.print(comparison_table(groups, args.iou_type))
    for folder in left_out:
        console.print(f"left out, not finished: {folder}", highlight=False)
    console.print(f"Written: {output / CSV_FILE}, {output / PLOT_FILE}", highlight=False)


def _headings(keys: Sequence[str]) -> list[str]:
    """Cut each key to its last part where no other ends alike."""
    last_parts = [key.replace("/", ".").split(".")[-1] for key in keys]
    return [last if last_parts.count(last) == 1 else key for key, last in zip(keys, last_parts, strict=True)]


def _mean_cell(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    if mean is None:
        return "-"
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


def _seeds(group: Group) -> str:
    return " ".join(str(run.seed) for run in group.runs)


def _places(labels: Sequence[str]) -> tuple[list[float], bool]:
    """Return where the groups stand on the axis: at their number where all are one, else in turn."""
    try:
        return [float(label) for label in labels], True
    except ValueError:
        return [float(index) for index in range(len(labels))], False


if __name__ == "__main__":
    main()
