"""Detections as flat arrays, and which of them LVIS counts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mflight.evaluation.ground_truth import GroundTruth, cells_of, is_member


@dataclass(frozen=True)
class Detections:
    """Detections of some images, ``N`` in all.

    Attributes:
        image_index: ``int64[N]`` position of the image in the ground truth's ``image_ids``.
        category_index: ``int64[N]`` position of the category in the ground truth's ``category_ids``.
        scores: ``float64[N]``.
        areas_px: ``float64[N]`` area by which the size ranges are told: box width times height where boxes
            are given (also for masks, as lvis-api does), else the mask's.
        boxes_xywh: ``float64[N, 4]`` in pixels, None without boxes.
        segmentations: ``N`` RLE dictionaries, ``Rle`` or polygons, None without masks. A single None stands
            for a mask that no overlap will ask for.
    """

    image_index: np.ndarray
    category_index: np.ndarray
    scores: np.ndarray
    areas_px: np.ndarray
    boxes_xywh: np.ndarray | None
    segmentations: list[Any] | None

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: np.ndarray) -> "Detections":
        """Return the detections at the positions ``int64[M]``, in that order."""
        return Detections(
            image_index=self.image_index[index],
            category_index=self.category_index[index],
            scores=self.scores[index],
            areas_px=self.areas_px[index],
            boxes_xywh=None if self.boxes_xywh is None else self.boxes_xywh[index],
            segmentations=None if self.segmentations is None else [self.segmentations[i] for i in index],
        )


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Join detections of the same kind; ``parts`` must not be empty."""
    first = parts[0]
    return Detections(
        image_index=np.concatenate([part.image_index for part in parts]),
        category_index=np.concatenate([part.category_index for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        areas_px=np.concatenate([part.areas_px for part in parts]),
        boxes_xywh=None if first.boxes_xywh is None else np.concatenate([part.boxes_xywh for part in parts]),
        segmentations=None
        if first.segmentations is None
        else [s for part in parts for s in part.segmentations],
    )


def select_judged(detections: Detections, ground_truth: GroundTruth, max_detections: int) -> Detections:
    """Keep what LVIS looks at, in the order in which it is matched.

    First the best ``max_detections`` of each image across its classes (the earlier one of equal scores),
    then of these the ones in a judged cell and with a positive, finite area.

    Args:
        detections: of whole images, in the order of the results file.
        ground_truth: the annotations.
        max_detections: how many of an image count.

    Returns:
        The kept ones, sorted by cell and falling score.
    """
    order = np.lexsort((-detections.scores, detections.image_index))  # stable
    rank = position_in_run(detections.image_index[order])
    order = order[rank < max_detections]
    cells = cells_of(detections.image_index, detections.category_index, ground_truth.num_categories)[order]
    areas_px = detections.areas_px[order]
    judged = (areas_px > 0) & (areas_px < np.inf)
    if ground_truth.judged_cells is not None:
        judged &= is_member(cells, ground_truth.judged_cells)
    order, cells = order[judged], cells[judged]
    return detections.take(order[np.argsort(cells, kind="stable")])


def blocks_of_images(image_index: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield positions of the detections of whole images, images ascending, at least ``size`` at a time."""
    order = np.argsort(image_index, kind="stable")
    starts = np.flatnonzero(np.diff(image_index[order], prepend=-1))
    begin = 0
    while begin < len(order):
        later = np.searchsorted(starts, begin + size)
        end = int(starts[later]) if later < len(starts) else len(order)
        yield order[begin:end]
        begin = end


def position_in_run(values: np.ndarray) -> np.ndarray:
    """Return ``int64[N]``: how many equal values stand right before each: 4, 4, 7, 4 gives 0, 1, 0, 0."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))[: len(values)]
    lengths = np.diff(np.append(starts, len(values)))
    return np.arange(len(values)) - np.repeat(starts, lengths)
