"""What a person reads at the end: AP by frequency, what was drawn, and where everything lies."""

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from mflight.data.slots import SlotCounts
from mflight.synthesis.service import ServiceReport
from mflight.training.callbacks.shared_device import sharing_figures
from mflight.training.callbacks.synthesis_monitor import generator_figures, slot_figures
from mflight.training.datamodule import MixedDataModule

_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@rank_zero_only
def report_results(
    trainer: L.Trainer, *, run_dir: Path, pool_dir: Path | None = None, verdict: str | None = None
) -> None:
    """Print the final table; write ``results.json`` and the classes, as JSON and CSV, into the run folder.

    Args:
        trainer: after its last validation.
        run_dir: the run folder.
        pool_dir: the pool folder, or ``None``.
        verdict: a sentence on the run as a whole, told after what happened to its generators.
    """
    data, module = trainer.datamodule, trainer.lightning_module
    figures = {
        name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
    }
    has_slots = isinstance(data, MixedDataModule)
    synthetic = data.synthetic if has_slots else None
    messages = [*(synthetic.messages if synthetic else []), *([verdict] if verdict else [])]
    rows = _with_train_counts(getattr(module, "per_class", []), data if has_slots else None)
    results = {
        "steps": trainer.global_step,
        "num_ranks": trainer.world_size,
        **_training_time(trainer),
        **figures,
        **(slot_figures(data.counts) if has_slots else {}),
        **(generator_figures(synthetic.report) if synthetic and synthetic.report else {}),
        **sharing_figures(trainer),
        "messages": messages,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "results.json").write_text(json.dumps(results, indent=1))
    (run_dir / "per_class.json").write_text(json.dumps(rows, indent=1, default=float))
    _write_csv(run_dir / "per_class.csv", rows)
    _log_per_class(trainer, rows)
    console = Console(soft_wrap=True)
    console.print(_ap_table(figures))
    if synthetic is not None and synthetic.stream is not None:
        lines = _synthesis_lines(data.counts, synthetic.report, sharing_figures(trainer))
        console.print(lines, highlight=False)
    for message in messages:
        console.print(message, style="bold red", highlight=False)
    for label, place in _places(trainer, run_dir, pool_dir):
        console.print(f"{label:<11} {place}", highlight=False)


def _training_time(trainer: L.Trainer) -> dict[str, float]:
    """Return the seconds of training with its validations, of all parts of a resumed run."""
    timer = next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)
    return {} if timer is None else {"train_s": timer.time_elapsed()}


def _places(trainer: L.Trainer, run_dir: Path, pool_dir: Path | None) -> list[tuple[str, str]]:
    places = [("run folder", str(run_dir))]
    if pool_dir is not None and pool_dir.exists():
        places.append(("pool", str(pool_dir)))
    if (run_dir / "checkpoints").is_dir():
        places.append(("checkpoints", str(run_dir / "checkpoints")))
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            folder = Path(logger.experiment.dir).parent
            places.append(("wandb run", str(folder)))
            if logger.experiment.settings.mode == "offline":
                parts = run_dir.parent.glob(
                    f"*/wandb/{folder.name.partition('-run-')[0]}-run-*-{logger.version}"
                )
                told = " ".join(map(str, sorted(parts, key=lambda part: part.name) or [folder]))
                places.append(("", f"offline; to send it: wandb sync {told}"))
    return places


def _ap_table(figures: dict[str, float]) -> Table:
    table = Table(title="LVIS validation, percent", caption="APr, APc, APf: rare, common, frequent classes")
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right", style="bold" if column == "APr" else None)
    for iou_type, title in (("bbox", "boxes"), ("segm", "masks")):
        values = [figures.get(f"val/{iou_type}/{column}") for column in _COLUMNS]
        if any(value is not None for value in values):
            table.add_row(title, *("-" if v is None or v < 0 else f"{v:.1f}" for v in values))
    return table


def _synthesis_lines(counts: SlotCounts, report: ServiceReport | None, sharing: dict[str, float]) -> str:
    line = (
        f"images trained on: {counts.real} real, {counts.fresh} fresh and {counts.reused} reused synthetic "
        f"({100 * counts.synthetic_share:.1f} %), {counts.fallback} fallbacks to real"
    )
    if report is None:
        return line
    regions, rejected = report.total("regions"), sum(report.total_by_name("rejected").values())
    if sharing:
        line += f"\none device for both: training waited {sum(sharing.values()):.0f} s for the generator"
    return (
        f"{line}\ngenerated: {report.total('accepted'):.0f} images accepted, "
        f"{report.total('dropped'):.0f} dropped; "
        f"{regions - rejected:.0f} of {regions:.0f} regions passed the filter"
    )


def _with_train_counts(rows: list[dict[str, Any]], data: MixedDataModule | None) -> list[dict[str, Any]]:
    """Tell of each class how much of it there was to learn from; ``num_instances`` are those validated."""
    if not rows or data is None:
        return rows
    counts = {c.category_id: (c.image_count, c.instance_count) for c in data.train_categories}
    told = []
    for row in rows:
        images, instances = counts.get(row["category_id"], (0, 0))
        head = {key: row[key] for key in ("category_id", "name", "frequency") if key in row}
        told.append({**head, "num_train_images": images, "num_train_instances": instances, **row})
    return told


def _write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _log_per_class(trainer: L.Trainer, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = list(rows[0])
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(
                "val/per_class", columns=columns, data=[[row[c] for c in columns] for row in rows]
            )
