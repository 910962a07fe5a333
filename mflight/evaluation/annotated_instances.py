"""The annotations that are scored, chunk by chunk of an annotation file."""

from dataclasses import dataclass
from typing import Any, Self

import msgspec
import numpy as np

from mflight.data.annotation_chunk import AnnotationChunk
from mflight.data.findings import Faults


class _Outline(msgspec.Struct):
    segmentation: msgspec.Raw


@dataclass(frozen=True)
class AnnotatedInstances:
    """Annotations that count, in file order; see ``GroundTruth``.

    Attributes:
        cells: ``int64[G]``.
        ids: ``int64[G]``.
        boxes_xywh: ``float64[G, 4]`` in pixels.
        areas_px: ``float64[G]``.
        is_ignored: ``bool[G]``.
        is_crowd: ``bool[G]``.
        segmentations: ``G`` outlines, None where nothing is outlined.
        num_left_out: annotations without an area.
    """

    cells: np.ndarray
    ids: np.ndarray
    boxes_xywh: np.ndarray
    areas_px: np.ndarray
    is_ignored: np.ndarray
    is_crowd: np.ndarray
    segmentations: list[Any]
    num_left_out: int = 0

    @classmethod
    def of_chunk(
        cls, chunk: AnnotationChunk, entries: list[Any], num_categories: int, is_coco: bool, faults: Faults
    ) -> Self:
        """Take what counts of a chunk.

        Args:
            chunk: the annotations.
            entries: the same as they stand in the file.
            num_categories: of the file.
            is_coco: whether an area of 0 is an unknown one.
            faults: takes annotations that lie nowhere.

        Returns:
            Those with a positive, finite area.
        """
        has_box = (chunk.boxes_xywh[:, 2:] > 0).all(axis=1)
        has_outline = (chunk.num_polygons > 0) | (chunk.rle_lengths > 0)
        for row in np.flatnonzero(~has_box & (chunk.areas_px > 0)).tolist():
            a = chunk.entries[row]
            faults.refuse("annotations have neither a box nor an outline", f"annotation {a.id}, {a.bbox}")
        given = chunk.given_areas_px
        areas_px = chunk.areas_px if is_coco else np.where(np.isnan(given), chunk.areas_px, given)
        keep = np.flatnonzero((areas_px > 0) & (areas_px < np.inf))
        is_ignored = [bool(a.ignore or a.iscrowd) for a in chunk.entries]
        return cls(
            cells=cells_of(chunk.image, chunk.label, num_categories)[keep],
            ids=chunk.ids[keep],
            boxes_xywh=chunk.boxes_xywh[keep],
            areas_px=areas_px[keep],
            is_ignored=np.array(is_ignored, dtype=bool)[keep],
            is_crowd=chunk.is_crowd[keep],
            segmentations=[_outline_of(entries[row]) if has_outline[row] else None for row in keep.tolist()],
        )

    @classmethod
    def join(cls, parts: list[Self], num_left_out: int) -> Self:
        """Put the instances of all chunks one behind the other."""
        whole = {
            "cells": np.zeros(0, dtype=np.int64),
            "ids": np.zeros(0, dtype=np.int64),
            "boxes_xywh": np.zeros((0, 4)),
            "areas_px": np.zeros(0),
            "is_ignored": np.zeros(0, dtype=bool),
            "is_crowd": np.zeros(0, dtype=bool),
        }
        joined = {
            name: np.concatenate([empty, *(getattr(part, name) for part in parts)])
            for name, empty in whole.items()
        }
        outlines = [outline for part in parts for outline in part.segmentations]
        return cls(**joined, segmentations=outlines, num_left_out=num_left_out)


_outline_decoder = msgspec.json.Decoder(_Outline)


def _outline_of(entry: Any) -> Any:
    """Return the outline as JSON text, or as it stands in parsed content."""
    return (
        _outline_decoder.decode(entry).segmentation if type(entry) is msgspec.Raw else entry["segmentation"]
    )


def cells_of(image_index: np.ndarray, category_index: np.ndarray, num_categories: int) -> np.ndarray:
    """Return the cell keys ``int64[N]`` of image and category indices."""
    return np.asarray(image_index, dtype=np.int64) * num_categories + category_index
