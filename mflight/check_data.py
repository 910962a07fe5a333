"""Verify a dataset before a long run: ``python -m mflight.check_data data=lvis_v1 [data.root=FOLDER]``."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mflight.data.annotation_check import AnnotationReport, check_annotations
from mflight.data.categories import FREQUENCIES
from mflight.data.class_names import name_conflict
from mflight.data.files import LVIS_DOWNLOADS, missing_parts
from mflight.data.findings import Findings
from mflight.data.image_check import check_images, likeliest_files
from mflight.mistakes import EXIT_STATUS, tells_mistakes

_CONFIG_PATH = str(Path(__file__).resolve().parents[1] / "conf")
SPLITS = ("train", "val")
_TABLE_ROWS = 40


def check_data(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Check annotation files and images of a dataset.

    Args:
        cfg: as ``conf/check_data.yaml`` composes it.

    Returns:
        Per split, and ``dataset`` for what concerns both: ``counts``, ``problems`` and ``notes``, a sentence
        each, and ``classes``, a row each with name, images, instances and frequency.
    """
    if cfg.data.prepare is not None:
        instantiate(cfg.data.prepare)()
    whole, advice, reports = Findings(), Findings(), {}
    for part in missing_parts(cfg.data):
        whole.add("files or folders are not there", part)
    for split in SPLITS:
        path = Path(cfg.data[f"{split}_annotations"])
        if path.is_file():
            reports[split] = _check_split(cfg, split, path)
    names = [report.names for report in reports.values() if report.names]
    if len(names) == len(SPLITS):
        _compare_splits(reports["train"], reports["val"], whole, advice)
        files = [likeliest_files(Path(cfg.data[f"{s}_images"]), reports[s].images) for s in SPLITS]
        if shared := files[0] & files[1]:
            found = f"{len(shared):,} of {len(files[1]):,}, {min(shared)} is one"
            advice.add("images that are scored are trained on too, so their AP says little", found)
    for split, report in reports.items():
        num_classes = len(report.names)
        if report.names and cfg.data.num_classes not in (None, num_classes):
            found = f"{num_classes} in the {split} annotations, data.num_classes={cfg.data.num_classes}"
            whole.add("numbers of classes differ", found)
    summary = {"dataset": {"counts": {}, "problems": whole.lines(), "notes": advice.lines(), "classes": []}}
    for split, report in reports.items():
        lines = {"problems": report.problems.lines(), "notes": report.notes.lines()}
        summary[split] = {"counts": report.counts, **lines, "classes": [asdict(c) for c in report.classes]}
    return summary


def _compare_splits(
    train: AnnotationReport, val: AnnotationReport, problems: Findings, advice: Findings
) -> None:
    for category_id in sorted(train.names.keys() ^ val.names.keys()):
        problems.add("category ids are in one of the annotation files only", category_id)
    if conflict := name_conflict(train.names, val.names):
        problems.add("ids have other names in train and val", conflict)
    for counts in val.classes:
        if not counts.instances:
            advice.add("classes have no instance in val, their AP cannot be told", counts.name)
    if not any(counts.frequency == "rare" for counts in train.classes):
        least = min(train.classes, key=lambda counts: counts.images)
        advice.add(
            "dataset has no rare class, which is what synthesis draws unless "
            "synthesis.planner.main_frequencies names others",
            f"the rarest, {least.name}, is in {least.images:,} images; a rare one is in 10 at most",
        )


def _check_split(cfg: DictConfig, split: str, path: Path) -> AnnotationReport:
    published = (cfg.data.published_counts or {}).get(split)
    is_train = split == "train"
    report = check_annotations(
        path, published_counts=published, is_train=is_train, max_left_out=cfg.data.max_left_out
    )
    root = Path(cfg.data[f"{split}_images"])
    if root.is_dir():
        numbers = {"num_images": _number(cfg.num_images), "num_decoded": _number(cfg.num_decoded)}
        report.problems.extend(
            check_images(root, report.images, **numbers, num_threads=cfg.num_threads, seed=cfg.seed)
        )
    if is_train and report.images and len(report.images) < cfg.data.batch_size:
        report.notes.add(
            "batch is larger than the training set",
            f"data.batch_size={cfg.data.batch_size}, {len(report.images)} images",
        )
    return report


def _number(value: Any) -> int | None:
    """Read ``all`` as ``None`` and let whole numbers pass."""
    if value == "all":
        return None
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"num_images and num_decoded must be a whole number >= 0 or all, got {value!r}")
    return value


def print_summary(summary: dict[str, dict[str, Any]], console: Console, advice: str = "") -> int:
    """Print what was found and return the number of problems.

    Args:
        summary: as ``check_data`` returns it.
        console: prints.
        advice: what to do about problems.

    Returns:
        How many kinds there are.
    """
    num_problems = 0
    for split, found in summary.items():
        counts = ", ".join(f"{count:,} {name}" for name, count in found["counts"].items())
        if not (counts or found["problems"] or found["notes"]):
            continue
        console.print(f"[bold]{split}[/bold] {counts}".rstrip())
        for kind, colour in (("problems", "red"), ("notes", "yellow")):
            for line in found[kind]:
                console.print(f"  [{colour}]{kind[:-1]}[/{colour}] {escape(line)}", soft_wrap=True)
        num_problems += len(found["problems"])
    if classes := summary.get("train", {}).get("classes"):
        console.print(_class_table(classes))
    if num_problems:
        console.print(f"{num_problems} kinds of problems. {advice}".rstrip(), soft_wrap=True)
    else:
        console.print("No problem found.")
    return num_problems


def _class_table(classes: list[dict[str, Any]]) -> Table:
    """Lay out the training classes, rarest first; of many, the two ends."""
    groups = Counter(row["frequency"] for row in classes)
    told = ", ".join(f"{groups[frequency]:,} {frequency}" for frequency in FREQUENCIES)
    table = Table(title=f"{len(classes):,} classes in train: {told}", title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("images", "instances"):
        table.add_column(name, justify="right")
    table.add_column("rare/common/frequent")
    rows = sorted(classes, key=lambda row: (row["images"], row["instances"]))
    half = _TABLE_ROWS // 2
    if len(rows) > _TABLE_ROWS:
        rows = [*rows[:half], None, *rows[-half:]]
    for row in rows:
        cells = ("...", "", "", "") if row is None else row.values()
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else escape(cell) for cell in cells))
    return table


@tells_mistakes
@hydra.main(version_base="1.3", config_path=_CONFIG_PATH, config_name="check_data")
@tells_mistakes
def main(cfg: DictConfig) -> None:
    """Run the command; it ends with 2 if there is a problem.

    Args:
        cfg: ``conf/check_data.yaml`` with its overrides.

    Raises:
        SystemExit: with 2 if there is a problem.
    """
    summary = check_data(cfg)
    if cfg.output is not None:
        Path(cfg.output).write_text(json.dumps(summary, indent=2) + "\n")
    is_lvis = Path(cfg.data.train_annotations).name == "lvis_v1_train.json"
    lvis = f"LVIS and its images: {LVIS_DOWNLOADS}" if is_lvis else ""
    if print_summary(summary, Console(highlight=False), lvis):
        raise SystemExit(EXIT_STATUS)


if __name__ == "__main__":
    main()
