"""IoU of detections and instances of the same cell: boxes in numpy, masks by pycocotools."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from mflight.data.annotation_format import as_polygons
from mflight.functional.run_lengths import compress_code

MaskCell = tuple[list[Any], list[Any], list[bool], int, int]
"""Outlines of the detections and of the instances of one cell, which of these are crowds, image height and
width in pixels."""


class Rle(msgspec.Struct, gc=False):
    """A run-length encoded mask: half the memory of the dictionary, and none of the garbage collector's time.

    Attributes:
        size: height and width in pixels.
        counts: compressed as ``str`` or ``bytes``, uncompressed as ``list[int]``.
    """

    size: tuple[int, int]
    counts: Any  # msgspec tells no str from bytes in a union


def box_overlaps(detected_xywh: np.ndarray, annotated_xywh: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Compare pairs of boxes.

    Args:
        detected_xywh: ``float64[P, 4]`` in pixels.
        annotated_xywh: ``float64[P, 4]`` in pixels.
        is_crowd: ``bool[P]`` where the annotated box holds many objects.

    Returns:
        ``float64[P]``: the IoU; with a crowd the share of the detected box within it, as in COCO.
    """
    ends = detected_xywh[:, :2] + detected_xywh[:, 2:], annotated_xywh[:, :2] + annotated_xywh[:, 2:]
    sides = np.minimum(*ends) - np.maximum(detected_xywh[:, :2], annotated_xywh[:, :2])
    intersection = sides[:, 0] * sides[:, 1]
    detected_px, annotated_px = detected_xywh[:, 2:].prod(axis=1), annotated_xywh[:, 2:].prod(axis=1)
    whole = np.where(is_crowd, detected_px, detected_px + annotated_px - intersection)
    overlapping = (sides > 0).all(axis=1)
    return np.divide(intersection, whole, out=np.zeros(len(whole)), where=overlapping)


def mask_overlaps(cells: Sequence[MaskCell]) -> np.ndarray:
    """Return the IoU of every (detection, instance) pair, cell after cell, detection after detection.

    With a crowd it is the share of the detection within it, as in COCO.

    Args:
        cells: cells that hold at least one detection and one instance.

    Returns:
        ``float64[P]``.
    """
    overlaps = []
    for detected, annotated, is_crowd, height_px, width_px in cells:
        detected_rles = [outline_to_rle(outline, height_px, width_px) for outline in detected]
        annotated_rles = [outline_to_rle(outline, height_px, width_px) for outline in annotated]
        overlaps.append(coco_mask.iou(detected_rles, annotated_rles, is_crowd).ravel())
    return np.concatenate(overlaps) if overlaps else np.zeros(0)


def outline_to_rle(outline: Any, height_px: int, width_px: int) -> dict[str, Any]:
    """Return a compressed RLE dictionary of polygons, an RLE dictionary or ``Rle``, or JSON text.

    None, and polygons of fewer than three points, enclose nothing.
    """
    if isinstance(outline, bytes):
        outline = msgspec.json.decode(outline)
    if outline is None or isinstance(outline, list):
        polygons = as_polygons(outline or [])
        if not polygons:
            return coco_mask.encode(np.zeros((height_px, width_px), dtype=np.uint8, order="F"))
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height_px, width_px))
    counts = outline.counts if isinstance(outline, Rle) else outline["counts"]
    return compress_code(counts, (height_px, width_px))


class OverlapWorkers:
    """Computes mask overlaps in ``num_workers`` spawned processes, or at once in this one with 0.

    Args:
        num_workers: number of processes, at least 0.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.num_workers:
            self._pool = ProcessPoolExecutor(self.num_workers, mp_context=get_context("spawn"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, cells: Sequence[MaskCell]) -> Callable[[], np.ndarray]:
        """Begin with some cells; the returned function waits for their ``float64[P]`` overlaps."""
        if self._pool is None:
            overlaps = mask_overlaps(cells)
            return lambda: overlaps
        pending: Future[np.ndarray] = self._pool.submit(mask_overlaps, cells)
        return pending.result
