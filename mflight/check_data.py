"""Verify a dataset before a long run: ``python -m mflight.check_data data=lvis_v1 [data.root=FOLDER]``."""

import json
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from mflight.data.annotation_check import AnnotationReport, check_annotations
from mflight.data.files import DATASET_KEYS, LVIS_DOWNLOADS
from mflight.data.findings import Findings
from mflight.data.image_check import check_images
from mflight.mistakes import EXIT_STATUS, tells_mistakes

_CONFIG_PATH = str(Path(__file__).resolve().parents[1] / "conf")
SPLITS = ("train", "val")


def check_data(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Check annotation files and images of a dataset.

    Args:
        cfg: as ``conf/check_data.yaml`` composes it.

    Returns:
        Per split, and ``dataset`` for what concerns both: ``counts``, ``problems`` and ``notes``, a sentence
        each.
    """
    if cfg.data.prepare is not None:
        instantiate(cfg.data.prepare)()
    whole, reports = Findings(), {}
    for key in DATASET_KEYS:
        if not Path(cfg.data[key]).exists():
            whole.add("files or folders are not there", f"data.{key}={cfg.data[key]}")
    for split in SPLITS:
        path = Path(cfg.data[f"{split}_annotations"])
        if path.is_file():
            reports[split] = _check_split(cfg, split, path)
    ids = [report.category_ids for report in reports.values() if report.counts]
    if len(ids) == len(SPLITS):
        for category_id in sorted(ids[0] ^ ids[1]):
            whole.add("category ids are in one of the annotation files only", category_id)
    for split, report in reports.items():
        num_classes = len(report.category_ids)
        if report.counts and num_classes != cfg.data.num_classes:
            found = f"{num_classes} in the {split} annotations, data.num_classes={cfg.data.num_classes}"
            whole.add("numbers of classes differ", found)
    summary = {"dataset": {"counts": {}, "problems": whole.lines(), "notes": []}}
    for split, report in reports.items():
        lines = {"problems": report.problems.lines(), "notes": report.notes.lines()}
        summary[split] = {"counts": report.counts, **lines}
    return summary


def _check_split(cfg: DictConfig, split: str, path: Path) -> AnnotationReport:
    published = (cfg.data.published_counts or {}).get(split)
    report = check_annotations(path, published_counts=published, is_train=split == "train")
    root = Path(cfg.data[f"{split}_images"])
    if root.is_dir():
        numbers = {"num_images": _number(cfg.num_images), "num_decoded": _number(cfg.num_decoded)}
        images = list(report.images.values())
        report.problems.extend(
            check_images(root, images, **numbers, num_threads=cfg.num_threads, seed=cfg.seed)
        )
    return report


def _number(value: Any) -> int | None:
    """Read ``all`` as ``None`` and let whole numbers pass."""
    if value == "all":
        return None
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"num_images and num_decoded must be a whole number >= 0 or all, got {value!r}")
    return value


def print_summary(summary: dict[str, dict[str, Any]], console: Console) -> int:
    """Print what was found and return the number of problems."""
    num_problems = 0
    for split, found in summary.items():
        counts = ", ".join(f"{count:,} {name}" for name, count in found["counts"].items())
        console.print(f"[bold]{split}[/bold] {counts}".rstrip())
        for kind, colour in (("problems", "red"), ("notes", "yellow")):
            for line in found[kind]:
                console.print(f"  [{colour}]{kind[:-1]}[/{colour}] {escape(line)}", soft_wrap=True)
        num_problems += len(found["problems"])
    if num_problems:
        console.print(
            f"{num_problems} kinds of problems. LVIS and its images: {LVIS_DOWNLOADS}", soft_wrap=True
        )
    else:
        console.print("No problem found.")
    return num_problems


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
    if print_summary(summary, Console(highlight=False)):
        raise SystemExit(EXIT_STATUS)


if __name__ == "__main__":
    main()
