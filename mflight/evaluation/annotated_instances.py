"""The annotations that are scored, chunk by chunk of an annotation file."""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from mflight.data.annotation_chunk import AnnotationChunk
from mflight.data.findings import Faults


class _Outline(msgspec.Struct):
    segmentation: msgspec.Raw


@dataclass(frozen=True, kw_only=True)
class AnnotatedInstances:
    """Annotations that count, ``G`` in all.

    Attributes:
        cells: ``int64[G]`` cell keys, see ``GroundTruth``.
        ids: ``int64[G]`` annotation ids.
        boxes_xywh: ``float64[G, 4]`` in pixels.
        areas_px: ``float64[G]`` the file's area, in square pixels; where the file tells none the outline's,
            or the box's.
        is_ignored: ``bool[G]`` the file's ``ignore`` flag, and crowds.
        is_crowd: ``bool[G]`` the file's ``iscrowd`` flag: a region of many objects, as COCO has them.
        segmentations: ``G`` polygons, RLE dictionaries or their JSON text; None where nothing is outlined.
    """

    cells: np.ndarray
    ids: np.ndarray
    boxes_xywh: np.ndarray
    areas_px: np.ndarray
    is_ignored: np.ndarray
    is_crowd: np.ndarray
    segmentations: list[Any]


def instances_of_chunk(
    chunk: AnnotationChunk, entries: list[Any], num_categories: int, is_coco: bool, faults: Faults
) -> AnnotatedInstances:
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
    return AnnotatedInstances(
        cells=cells_of(chunk.image, chunk.label, num_categories)[keep],
        ids=chunk.ids[keep],
        boxes_xywh=chunk.boxes_xywh[keep],
        areas_px=areas_px[keep],
        is_ignored=np.array(is_ignored, dtype=bool)[keep],
        is_crowd=chunk.is_crowd[keep],
        segmentations=[_outline_of(entries[row]) if has_outline[row] else None for row in keep.tolist()],
    )


def join_by_cell(parts: list[AnnotatedInstances]) -> AnnotatedInstances:
    """Put the instances of all chunks in the order of their cells, in file order within a cell."""
    empty = {
        "cells": np.zeros(0, dtype=np.int64),
        "ids": np.zeros(0, dtype=np.int64),
        "boxes_xywh": np.zeros((0, 4)),
        "areas_px": np.zeros(0),
        "is_ignored": np.zeros(0, dtype=bool),
        "is_crowd": np.zeros(0, dtype=bool),
    }
    arrays = {
        name: np.concatenate([none, *(getattr(part, name) for part in parts)]) for name, none in empty.items()
    }
    outlines = [outline for part in parts for outline in part.segmentations]
    order = np.argsort(arrays["cells"], kind="stable")
    return AnnotatedInstances(
        **{name: values[order] for name, values in arrays.items()},
        segmentations=[outlines[index] for index in order],
    )


_outline_decoder = msgspec.json.Decoder(_Outline)


def _outline_of(entry: Any) -> Any:
    """Return the outline as JSON text, or as it stands in parsed content."""
    return (
        _outline_decoder.decode(entry).segmentation if type(entry) is msgspec.Raw else entry["segmentation"]
    )


def cells_of(image_index: np.ndarray, category_index: np.ndarray, num_categories: int) -> np.ndarray:
    """Return the cell keys ``int64[N]`` of image and category indices."""
    return np.asarray(image_index, dtype=np.int64) * num_categories + category_index
