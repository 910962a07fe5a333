"""What the finished runs of a proof say, as the JSON types of ``proof.json``. No torch."""

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mflight.proof.arms import ACCOUNTS, SYNTHESIS, machine_s
from mflight.proof.difference import paired_difference, paired_differences
from mflight.proof.runs import Run
from mflight.synthesis.pool.reader import PoolReader

IOU_TYPES = ("segm", "bbox")
FIGURES = ("AP", "AP50", "APr", "APc", "APf")

Runs = Mapping[str, Sequence[Run]]
"""The finished runs of each arm, in the order of the seeds."""


def build_record(runs: Runs, accounts: Sequence[str], pools: Sequence[Path]) -> dict[str, Any]:
    """Put together what a proof found.

    Args:
        runs: by arm.
        accounts: keys of ``ACCOUNTS``.
        pools: the pool folders that ``synthesis`` has trained from.

    Returns:
        ``accounts`` (figures by seed and their differences), ``machine_time`` (device-seconds of synthesis
        over those of real only, by account), ``steps`` and ``machine_s`` by arm, ``curves``, ``classes`` and
        ``drawing``. A figure that LVIS gives as -1, nothing to average, is ``null``, and left out where it is
        so in every run.
    """
    results = {arm: [run.results for run in own] for arm, own in runs.items()}
    figures = _figures(results)
    machine = {arm: [machine_s(each) for each in own] for arm, own in results.items()}
    return {
        "accounts": {account: _account(figures, ACCOUNTS[account]) for account in accounts},
        "machine_time": {
            account: statistics.mean(
                ours / theirs
                for ours, theirs in zip(machine[SYNTHESIS], machine[ACCOUNTS[account]], strict=True)
            )
            for account in accounts
        },
        "steps": {arm: [each["steps"] for each in own] for arm, own in results.items()},
        "machine_s": machine,
        "curves": {arm: [_curves(run) for run in own] for arm, own in runs.items()},
        "classes": _classes(runs, ACCOUNTS[accounts[0]], pools),
        "drawing": [
            {
                key.removeprefix("synthesis/"): value
                for key, value in each.items()
                if key.startswith("synthesis/")
            }
            for each in results[SYNTHESIS]
        ],
    }


def _account(figures: Mapping[str, Mapping[str, list[float | None]]], arm: str) -> dict[str, Any]:
    real, ours = figures[arm], figures[SYNTHESIS]
    return {"real_only": real, "synthesis": ours, "difference": paired_differences(real, ours)}


def _figures(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, list[float | None]]]:
    names = [f"{iou_type}/{figure}" for iou_type in IOU_TYPES for figure in FIGURES]
    by_arm = {
        arm: {name: [_scored(each, f"val/{name}") for each in own] for name in names}
        for arm, own in results.items()
    }
    told = [
        name for name in names if any(value is not None for own in by_arm.values() for value in own[name])
    ]
    return {arm: {name: own[name] for name in told} for arm, own in by_arm.items()}


def _scored(row: Mapping[str, Any], key: str) -> float | None:
    """Return a figure, or ``None`` for one that is not there, is -1 or no number."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and value >= 0 else None


def _curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Return each figure of a run over its validations, as pairs of steps trained and value."""
    curves: dict[str, dict[int, float]] = {}
    last_step = run.results["steps"]
    before = sorted(run.folder.glob("csv_before_*.csv"), key=lambda file: int(file.stem.rpartition("_")[2]))
    for file in [*before, run.folder / "csv" / "metrics.csv"]:
        if not file.is_file():
            continue
        with file.open(newline="") as opened:
            for row in csv.DictReader(opened):
                for name in (f"{iou_type}/{figure}" for iou_type in IOU_TYPES for figure in FIGURES):
                    if (text := row.get(f"val/{name}")) and float(text) >= 0:
                        step = min(
                            int(row["step"]) + 1, last_step
                        )  # logged with the number of the last batch
                        curves.setdefault(name, {})[step] = float(text)
    return {name: sorted(points.items()) for name, points in curves.items()}


def _classes(runs: Runs, baseline: str, pools: Sequence[Path]) -> list[dict[str, Any]]:
    """Return a row for each class: the training images, what was drawn and kept, AP by arm, the change."""
    tables = {arm: [_per_class(run) for run in runs[arm]] for arm in (baseline, SYNTHESIS)}
    drawn, kept = _count_regions(pools)
    rows = []
    for category_id, first in tables[SYNTHESIS][0].items():
        iou_type = next((kind for kind in IOU_TYPES if f"{kind}/AP" in first), IOU_TYPES[0])
        by_arm = {
            arm: [_scored(table.get(category_id, {}), f"{iou_type}/AP") for table in own]
            for arm, own in tables.items()
        }
        rows.append(
            {
                "category_id": category_id,
                **{key: first.get(key) for key in ("name", "frequency", "num_train_images")},
                "num_drawn": drawn.get(category_id, 0),
                "num_accepted": kept.get(category_id, 0),
                "real_only": by_arm[baseline],
                "synthesis": by_arm[SYNTHESIS],
                "difference": paired_difference(by_arm[baseline], by_arm[SYNTHESIS]),
            }
        )
    scored = [row for row in rows if row["difference"]["mean"] is not None]
    return sorted(scored, key=lambda row: -row["difference"]["mean"])


def _per_class(run: Run) -> dict[int, dict[str, Any]]:
    rows = json.loads((run.folder / "per_class.json").read_text())
    return {row["category_id"]: row for row in rows}


def _count_regions(pools: Sequence[Path]) -> tuple[dict[int, int], dict[int, int]]:
    drawn: dict[int, int] = {}
    kept: dict[int, int] = {}
    for pool in pools:
        if not pool.is_dir():
            continue
        counts_of_pool = PoolReader(pool).acceptance()
        for counted, counts in ((drawn, counts_of_pool.num_drawn), (kept, counts_of_pool.num_kept)):
            for category_id, number in counts.items():
                counted[category_id] = counted.get(category_id, 0) + number
    return drawn, kept
