"""Greedy matching by LVIS's rules, for all cells, IoU thresholds and area ranges at once.

One 64-bit number holds a yes or no for each of the 4 area ranges x 10 thresholds: bit ``10 * range +
threshold``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from mflight.evaluation.detections import position_in_run

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES_PX = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
NUM_THRESHOLDS = len(IOU_THRESHOLDS)
NUM_COMBINATIONS = NUM_THRESHOLDS * len(AREA_RANGES_PX)
ALL_BITS = np.uint64((1 << NUM_COMBINATIONS) - 1)

_NO_BITS = np.uint64(0)
_RANGE_BITS = [
    np.uint64(((1 << NUM_THRESHOLDS) - 1) << (NUM_THRESHOLDS * a)) for a in range(len(AREA_RANGES_PX))
]
_REACHED_BITS = np.array(
    [
        sum(((1 << reached) - 1) << (NUM_THRESHOLDS * a) for a in range(len(AREA_RANGES_PX)))
        for reached in range(NUM_THRESHOLDS + 1)
    ],
    dtype=np.uint64,
)


def outside_bits(areas_px: np.ndarray) -> np.ndarray:
    """Return ``uint64[N]``: all thresholds of the ranges in which an area ``float64[N]`` does not lie."""
    outside = np.zeros(len(areas_px), dtype=np.uint64)
    for bits, (low, high) in zip(_RANGE_BITS, AREA_RANGES_PX.values(), strict=True):
        outside |= np.where((areas_px < low) | (areas_px > high), bits, _NO_BITS)
    return outside


def reached_bits(overlaps: np.ndarray) -> np.ndarray:
    """Return ``uint64[P]``: the thresholds that an IoU ``float64[P]`` reaches, in every area range."""
    return _REACHED_BITS[np.searchsorted(IOU_THRESHOLDS, overlaps, side="right")]


@dataclass(frozen=True)
class Pairs:
    """Detections and instances of the same cell, ``P`` pairs sorted by detection, then by instance.

    Attributes:
        detection: ``int64[P]`` position in the detections, which are sorted by cell and falling score.
        instance: ``int64[P]`` position in the instances; later in the file is larger.
    """

    detection: np.ndarray
    instance: np.ndarray

    @classmethod
    def within_cells(cls, detection_cells: np.ndarray, instance_cells: np.ndarray) -> Self:
        """Pair every detection with all instances of its cell, given the ascending cell keys of both."""
        first = np.searchsorted(instance_cells, detection_cells, side="left")
        counts = np.searchsorted(instance_cells, detection_cells, side="right") - first
        detection = np.repeat(np.arange(len(detection_cells)), counts)
        return cls(detection=detection, instance=first[detection] + position_in_run(detection))

    def where(self, keep: np.ndarray) -> Self:
        """Return the pairs at which ``bool[P]`` is true."""
        return type(self)(detection=self.detection[keep], instance=self.instance[keep])


def greedy_match(
    pairs: Pairs,
    overlaps: np.ndarray,
    detection_cells: np.ndarray,
    ignored: np.ndarray,
    *,
    is_crowd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Give each detection, best score first, the best instance of its cell that is still free.

    An instance that counts is preferred to an ignored one, then the larger IoU, then the later of equal ones.
    Cells do not touch each other, so the first candidates of all cells are matched in one step, then the
    second.

    Shapes: ``P`` pairs, ``D`` detections.

    Args:
        pairs: the pairs to consider.
        overlaps: ``float64[P]`` IoU of the pairs.
        detection_cells: ``int64[D]`` cell keys, ascending.
        ignored: ``uint64[P]`` combinations in which the pair's instance does not count.
        is_crowd: ``bool[P]`` true where the instance is a crowd, which many detections may match.

    Returns:
        ``uint64[D]`` combinations in which the detection is matched, and ``uint64[D]`` those in which it
        took an ignored instance.
    """
    order = np.lexsort((-pairs.instance, -overlaps, pairs.detection))
    detection, reached = pairs.detection[order], reached_bits(overlaps[order])
    instance = np.unique(pairs.instance, return_inverse=True)[1][order]
    ignored = ignored[order]
    single = np.where(is_crowd[order], _NO_BITS, ALL_BITS)

    occupied = np.zeros(len(detection_cells), dtype=np.uint64)  # [D]
    matched_ignored = occupied.copy()
    taken = np.zeros(len(order), dtype=np.uint64)
    for steps in _steps_of_rounds(detection, detection_cells):
        for ignored_turn in (False, True):
            for step in steps:
                d, g = detection[step], instance[step]
                turn = ignored[step] if ignored_turn else ~ignored[step]
                hit = reached[step] & turn & ~taken[g] & ~occupied[d]
                occupied[d] |= hit
                taken[g] |= hit & single[step]
                if ignored_turn:
                    matched_ignored[d] |= hit
    return occupied, matched_ignored


def _steps_of_rounds(detection: np.ndarray, detection_cells: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Yield per round (the n-th candidate of each cell) its steps: the pairs' positions, best pair first."""
    if len(detection) == 0:
        return
    slot = position_in_run(detection)
    first_pairs = slot == 0
    round_of_detection = position_in_run(detection_cells[detection[first_pairs]])
    round_of_pair = round_of_detection[np.cumsum(first_pairs) - 1]
    order = np.lexsort((slot, round_of_pair))
    rounds, slots = round_of_pair[order], slot[order]
    bounds = np.flatnonzero((np.diff(rounds) != 0) | (np.diff(slots) != 0)) + 1
    steps: list[np.ndarray] = []
    for step in np.split(order, bounds):
        if slot[step[0]] == 0 and steps:
            yield steps
            steps = []
        steps.append(step)
    yield steps
