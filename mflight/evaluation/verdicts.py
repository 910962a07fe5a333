"""What matching leaves of a detection: image, class, score, and where it is right or wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np

from mflight.evaluation.detections import Detections
from mflight.evaluation.ground_truth import GroundTruth, cells_of, is_member
from mflight.evaluation.matching import ALL_BITS, IOU_THRESHOLDS, Pairs, greedy_match, outside_bits
from mflight.evaluation.overlap import MaskCell, OverlapWorkers, box_overlaps


@dataclass(frozen=True)
class Verdicts:
    """Matched detections, ``N`` in all, with 32 bytes each for one IoU type and 48 for two.

    Attributes:
        image_index: ``int32[N]`` position of the image in the ground truth.
        category_index: ``int32[N]`` position of the category in the ground truth.
        scores: ``float64[N]``.
        right: per IoU type ``uint64[N]``, the combinations (see ``matching``) in which it is a true positive.
        wrong: per IoU type ``uint64[N]``, those in which it is a false positive; in the others it is ignored.
    """

    image_index: np.ndarray
    category_index: np.ndarray
    scores: np.ndarray
    right: dict[str, np.ndarray]
    wrong: dict[str, np.ndarray]

    @classmethod
    def empty(cls, iou_types: Sequence[str]) -> Self:
        """Return verdicts of no detection."""
        return cls(
            image_index=np.zeros(0, dtype=np.int32),
            category_index=np.zeros(0, dtype=np.int32),
            scores=np.zeros(0),
            right={iou_type: np.zeros(0, dtype=np.uint64) for iou_type in iou_types},
            wrong={iou_type: np.zeros(0, dtype=np.uint64) for iou_type in iou_types},
        )

    def take(self, index: np.ndarray) -> "Verdicts":
        """Return the verdicts at the positions ``int64[M]`` or where ``bool[N]`` is true."""
        return Verdicts(
            image_index=self.image_index[index],
            category_index=self.category_index[index],
            scores=self.scores[index],
            right={iou_type: bits[index] for iou_type, bits in self.right.items()},
            wrong={iou_type: bits[index] for iou_type, bits in self.wrong.items()},
        )

    @staticmethod
    def concatenate(parts: "Sequence[Verdicts]") -> "Verdicts":
        """Join verdicts over the same IoU types; ``parts`` must not be empty."""
        return Verdicts(
            image_index=np.concatenate([part.image_index for part in parts]),
            category_index=np.concatenate([part.category_index for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            right={key: np.concatenate([part.right[key] for part in parts]) for key in parts[0].right},
            wrong={key: np.concatenate([part.wrong[key] for part in parts]) for key in parts[0].wrong},
        )


def start_judging(
    detections: Detections, ground_truth: GroundTruth, iou_types: Sequence[str], workers: OverlapWorkers
) -> Callable[[], Verdicts]:
    """Begin to match detections; mask overlaps go to the workers meanwhile.

    Args:
        detections: of whole images, as ``select_judged`` returns them.
        ground_truth: the annotations.
        iou_types: "bbox", "segm" or both; the detections hold what they need.
        workers: computes mask overlaps.

    Returns:
        A function that finishes the matching and returns the verdicts of all detections that count in at
        least one combination.
    """
    cells = cells_of(detections.image_index, detections.category_index, ground_truth.num_categories)
    pairs = Pairs.within_cells(cells, ground_truth.cells)
    if "segm" in iou_types:
        wait_for_masks = workers.start(_mask_cells(detections, cells, ground_truth))

    def finish() -> Verdicts:
        right, wrong = {}, {}
        for iou_type in iou_types:
            if iou_type == "bbox":
                overlaps = box_overlaps(
                    detections.boxes_xywh[pairs.detection],
                    ground_truth.boxes_xywh[pairs.instance],
                    ground_truth.is_crowd[pairs.instance],
                )
            else:
                overlaps = wait_for_masks()
            right[iou_type], wrong[iou_type] = _judge(pairs, overlaps, detections, cells, ground_truth)
        counts = sum(right[key] | wrong[key] for key in iou_types) != 0
        verdicts = Verdicts(
            image_index=detections.image_index.astype(np.int32),
            category_index=detections.category_index.astype(np.int32),
            scores=detections.scores,
            right=right,
            wrong=wrong,
        )
        return verdicts.take(counts)

    return finish


def _judge(
    pairs: Pairs, overlaps: np.ndarray, detections: Detections, cells: np.ndarray, ground_truth: GroundTruth
) -> tuple[np.ndarray, np.ndarray]:
    near = overlaps >= IOU_THRESHOLDS[0]
    pairs, overlaps = pairs.where(near), overlaps[near]
    ignored = outside_bits(ground_truth.areas_px[pairs.instance])
    ignored[ground_truth.is_ignored[pairs.instance]] = ALL_BITS
    matched, matched_ignored = greedy_match(
        pairs,
        overlaps,
        cells,
        ignored,
        is_crowd=ground_truth.is_crowd[pairs.instance],
    )
    outside = outside_bits(detections.areas_px)
    outside[is_member(cells, ground_truth.open_cells)] = ALL_BITS
    counting = ~(matched_ignored | (~matched & outside)) & ALL_BITS
    return matched & counting, ~matched & counting


def _mask_cells(detections: Detections, cells: np.ndarray, ground_truth: GroundTruth) -> list[MaskCell]:
    """List the outlines of each cell that holds detections and instances, in the order of the pairs."""
    keys, first = np.unique(cells, return_index=True)
    last = np.append(first[1:], len(cells))
    instance_first = np.searchsorted(ground_truth.cells, keys, side="left")
    instance_last = np.searchsorted(ground_truth.cells, keys, side="right")
    mask_cells = []
    for index in np.flatnonzero(instance_last > instance_first):
        instances = slice(instance_first[index], instance_last[index])
        outlines = ground_truth.segmentations[instances]
        height_px, width_px = ground_truth.image_hw[detections.image_index[first[index]]].tolist()
        mask_cells.append(
            (
                detections.segmentations[first[index] : last[index]],
                [bytes(outline) if isinstance(outline, msgspec.Raw) else outline for outline in outlines],
                ground_truth.is_crowd[instances].tolist(),
                height_px,
                width_px,
            )
        )
    return mask_cells
