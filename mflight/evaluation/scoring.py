"""Score a whole results file at once."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mflight.evaluation.ground_truth import GroundTruth
from mflight.evaluation.lvis_ap import LVISEvaluator
from mflight.evaluation.results import read_results

_MAX_WORKERS = 8
_WORTH_WORKERS = 20_000  # masks; below, starting processes takes longer than the work


def score_results(
    *,
    ground_truth: GroundTruth | Mapping[str, Any] | str | Path,
    results: str | Path | Sequence[dict[str, Any]],
    max_detections: int = 300,
    num_workers: int | None = None,
    iou_types: Sequence[str] | None = None,
) -> LVISEvaluator:
    """Score a results file or list in LVIS format: its boxes, its masks, or both.

    Args:
        ground_truth: LVIS annotations.
        results: path of the results, or the list itself, which stays as it is.
        max_detections: how many detections of an image count.
        num_workers: processes that compute mask overlaps, 0 for none beside this one. None: one per core, at
            most 8, where there are enough masks to be worth starting them.
        iou_types: what is scored, "bbox", "segm" or both; ``None``: whatever the results hold.

    Returns:
        The evaluator that has taken in everything: ask it for ``compute()`` and ``per_class()``.
    """
    ground_truth = GroundTruth.load(ground_truth)
    detections = read_results(results, ground_truth, iou_types)
    held = {"bbox": detections.boxes_xywh, "segm": detections.segmentations}
    iou_types = tuple(iou_type for iou_type, values in held.items() if values is not None)
    evaluator = LVISEvaluator(ground_truth=ground_truth, iou_types=iou_types, max_detections=max_detections)
    if num_workers is None:
        num_masks = sum(outline is not None for outline in detections.segmentations or ())
        num_workers = min(_num_cores(), _MAX_WORKERS) if num_masks > _WORTH_WORKERS else 0
    evaluator.update_all(detections=detections, num_workers=num_workers)
    return evaluator


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
