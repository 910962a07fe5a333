"""Verdicts to average precision: per class first, then the thirteen LVIS figures."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mflight.data.categories import FREQUENCIES
from mflight.evaluation.detections import position_in_run
from mflight.evaluation.ground_truth import GroundTruth
from mflight.evaluation.matching import (
    AREA_RANGES_PX,
    IOU_THRESHOLDS,
    NUM_COMBINATIONS,
    NUM_THRESHOLDS,
    outside_bits,
)
from mflight.evaluation.verdicts import Verdicts

RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
NOTHING_TO_AVERAGE = -1.0
_AREA_NAMES = tuple(AREA_RANGES_PX)
_AT_50, _AT_75 = (int(np.flatnonzero(IOU_THRESHOLDS == threshold)[0]) for threshold in (0.50, 0.75))


@dataclass(frozen=True)
class ClassFigures:
    """Figures of every class in [0, 1]; -1 where the class has no instance in the area range.

    Shapes: ``C`` categories, ``A`` the area ranges all, small, medium, large.

    Attributes:
        num_instances: ``int64[A, C]`` instances that count.
        num_images: ``int64[C]`` images that hold one, of any area.
        precision: ``float64[A, C]`` mean over IoU thresholds and recall levels.
        precision_50: ``float64[C]`` at IoU 0.5, all areas.
        precision_75: ``float64[C]`` at IoU 0.75, all areas.
        recall: ``float64[A, C]`` largest recall, mean over IoU thresholds.
    """

    num_instances: np.ndarray
    num_images: np.ndarray
    precision: np.ndarray
    precision_50: np.ndarray
    precision_75: np.ndarray
    recall: np.ndarray

    def average(self, frequencies: tuple[str, ...]) -> dict[str, float]:
        """Return the thirteen figures in percent, -1 where there is nothing to average."""
        figures = {
            "AP": _mean(self.precision[0]),
            "AP50": _mean(self.precision_50),
            "AP75": _mean(self.precision_75),
        }
        for index, name in enumerate(_AREA_NAMES[1:], start=1):
            figures[f"AP{name[0]}"] = _mean(self.precision[index])
        for frequency in FREQUENCIES:
            of_frequency = np.array([own == frequency for own in frequencies], dtype=bool)
            figures[f"AP{frequency[0]}"] = _mean(self.precision[0][of_frequency])
        figures["AR"] = _mean(self.recall[0])
        for index, name in enumerate(_AREA_NAMES[1:], start=1):
            figures[f"AR{name[0]}"] = _mean(self.recall[index])
        return figures


def to_percent(value: float) -> float:
    """Return a figure in [0, 1] in percent; -1 (nothing to average) stays -1."""
    return float(value) if value == NOTHING_TO_AVERAGE else 100.0 * float(value)


def summarize_classes(
    verdicts: Verdicts, iou_type: str, ground_truth: GroundTruth, is_evaluated: np.ndarray
) -> ClassFigures:
    """Turn verdicts into figures per class.

    Args:
        verdicts: of the detections, the ones of an image in their matching order.
        iou_type: "bbox" or "segm".
        ground_truth: the annotations.
        is_evaluated: ``bool[I]`` the images that count.

    Returns:
        The figures.
    """
    num_categories = ground_truth.num_categories
    num_instances, num_images = _count_instances(ground_truth, is_evaluated)
    figures = ClassFigures(
        num_instances=num_instances,
        num_images=num_images,
        precision=np.full((len(_AREA_NAMES), num_categories), NOTHING_TO_AVERAGE),
        precision_50=np.full(num_categories, NOTHING_TO_AVERAGE),
        precision_75=np.full(num_categories, NOTHING_TO_AVERAGE),
        recall=np.full((len(_AREA_NAMES), num_categories), NOTHING_TO_AVERAGE),
    )
    verdicts = verdicts.take(is_evaluated[verdicts.image_index])
    # Falling score; equal scores by image id, then by their order in the image.
    order = np.lexsort((verdicts.image_index, -verdicts.scores, verdicts.category_index))
    right, wrong = verdicts.right[iou_type][order], verdicts.wrong[iou_type][order]
    bounds = np.searchsorted(verdicts.category_index[order], np.arange(num_categories + 1))
    for category in np.flatnonzero(num_instances.any(axis=0)):
        part = slice(bounds[category], bounds[category + 1])
        precision, recall = precision_at_recall_levels(right[part], wrong[part], num_instances[:, category])
        present = num_instances[:, category] > 0
        figures.precision[present, category] = precision[present].mean(axis=(1, 2))
        figures.recall[present, category] = recall[present].mean(axis=1)
        if present[0]:
            figures.precision_50[category] = precision[0, _AT_50].mean()
            figures.precision_75[category] = precision[0, _AT_75].mean()
    return figures


def precision_at_recall_levels(
    right: np.ndarray, wrong: np.ndarray, num_instances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the interpolated precision of one class.

    Args:
        right: ``uint64[N]`` combinations in which a detection is a true positive, by falling score.
        wrong: ``uint64[N]`` combinations in which it is a false positive.
        num_instances: ``int64[A]`` instances that count per area range.

    Returns:
        ``float64[A, T, 101]`` precision at the recall levels and ``float64[A, T]`` largest recall; values of
        area ranges without an instance mean nothing.
    """
    shifts = np.arange(NUM_COMBINATIONS, dtype=np.uint64)[:, None]
    false_positives = np.cumsum((wrong >> shifts) & np.uint64(1), axis=1, dtype=np.int32)  # [A*T, N]
    # The envelope of the precision bends only at true positives: nothing else needs a look.
    row, column = np.nonzero((right >> shifts) & np.uint64(1))
    rank = position_in_run(row)  # earlier true positives of the same combination
    counts = np.bincount(row, minlength=NUM_COMBINATIONS)
    precision = np.zeros((NUM_COMBINATIONS, int(counts.max()) + 1))  # the last column: recall not reached
    precision[row, rank] = (rank + 1) / (rank + 1 + false_positives[row, column] + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]

    divisors = np.maximum(num_instances, 1)
    needed = np.stack([_needed_for_recall(int(n)) for n in divisors])  # [A, 101]
    found = np.minimum(np.maximum(np.repeat(needed, NUM_THRESHOLDS, axis=0) - 1, 0), counts.max())
    shape = (len(num_instances), NUM_THRESHOLDS)
    at_levels = np.take_along_axis(precision, found, axis=1).reshape(*shape, -1)
    return at_levels, counts.reshape(shape) / divisors[:, None]


@lru_cache(maxsize=4096)
def _needed_for_recall(num_instances: int) -> np.ndarray:
    """Return ``int64[101]``: the number of true positives at which each recall level is reached."""
    return np.searchsorted(np.arange(num_instances + 1) / num_instances, RECALL_LEVELS)


def _count_instances(ground_truth: GroundTruth, is_evaluated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what counts of each class: instances ``int64[A, C]`` by area range, and images ``int64[C]``."""
    num_categories = ground_truth.num_categories
    image_index, category_index = np.divmod(ground_truth.cells, max(num_categories, 1))
    counted = is_evaluated[image_index] & ~ground_truth.is_ignored
    outside = outside_bits(ground_truth.areas_px)
    rows = []
    for index in range(len(_AREA_NAMES)):
        inside = (outside >> np.uint64(index * NUM_THRESHOLDS)) & np.uint64(1) == 0
        rows.append(np.bincount(category_index[counted & inside], minlength=num_categories))
    cells = np.unique(ground_truth.cells[counted])
    return np.stack(rows), np.bincount(cells % max(num_categories, 1), minlength=num_categories)


def _mean(values: np.ndarray) -> float:
    present = values[values > NOTHING_TO_AVERAGE]
    return to_percent(present.mean()) if len(present) else NOTHING_TO_AVERAGE
