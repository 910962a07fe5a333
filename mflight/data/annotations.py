"""Read LVIS v1 and COCO annotation files into flat arrays that leave no Python object behind."""

import gc
import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from mflight.data.annotation_format import (
    AnnotationEntry,
    FileSections,
    ImageEntry,
    decode_entries,
    image_path,
)
from mflight.data.instance_arrays import InstanceArrays, cumulate

FORMAT_VERSION = 2
"""Number of the array layout below; raise it when the layout changes, so that cached arrays are made anew."""


def read_annotation_file(path: Path) -> dict[str, np.ndarray]:
    """Read an annotation file in LVIS v1 or COCO instance format.

    The file is mapped, not loaded, and its entries are decoded some thousand at a time, so the peak is the
    size of the arrays (0.5 GB for LVIS v1 train) and of the mapped file, where Python objects of the whole
    would take 6 GB. Crowds, boxes without an area and segmentations without a polygon of three points are
    dropped and counted.

    Shapes: ``I`` images in the order of the file, ``A`` instances sorted by image, ``P`` polygons, ``V``
        vertices, ``C`` classes in the order of their ids, ``D`` crowds.

    Args:
        path: the JSON file.

    Returns:
        | ``image_ids`` int64[I], ``image_sizes_hw`` int32[I, 2] in pixels
        | ``paths`` uint8: text of all image paths, image ``i`` has ``path_offsets[i]:path_offsets[i + 1]``
        | ``is_exhaustive`` bool[I]: the image has no ``neg_category_ids``, all classes were looked for
        | ``negatives`` and ``not_exhaustive`` int32 labels, with ``negative_offsets``,
          ``not_exhaustive_offsets``
        | ``instance_offsets`` int64[I + 1], ``annotation_ids`` int64[A], ``labels`` int32[A] in ``1..C``
        | ``boxes`` float32[A, 4] xyxy in pixels, ``areas`` float32[A] in square pixels
        | ``polygon_offsets`` int64[A + 1] into the polygons, ``vertex_offsets`` int64[P + 1] into the
          vertices
        | ``vertices`` float32[V, 2], x and y in pixels
        | ``rle`` uint8: compressed counts, instance ``a`` has ``rle_offsets[a]:rle_offsets[a + 1]``
        | ``image_counts`` and ``instance_counts`` int64[C] of the classes in this file
        | ``crowd_offsets`` int64[I + 1], ``crowd_labels`` int32[D], ``crowd_boxes`` float32[D, 4] xyxy
        | ``categories`` uint8: JSON text of the file's category list, ``num_dropped`` int64 by
          ``DROP_REASONS``

    Raises:
        ValueError: if the file is not in this format, or an entry names an unknown image or category, or a
            run-length code has another size than its image.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is no LVIS- or COCO-format annotation file: it is empty")
    with path.open("rb") as handle, _no_gc():
        text = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped when its last view goes
        try:
            return _flatten(text, path)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} is no LVIS- or COCO-format annotation file: {error}") from error


def _flatten(text: mmap.mmap, path: Path) -> dict[str, np.ndarray]:
    sections = msgspec.json.decode(text, type=FileSections)
    labels = {c.get("id"): label for label, c in enumerate(sorted(sections.categories, key=_id), start=1)}
    images = list(decode_entries(sections.images, ImageEntry, "images"))
    instances = InstanceArrays(images, labels, path)
    instances.extend(decode_entries(sections.annotations, AnnotationEntry, "annotations"))
    return {
        **_flatten_images(images, labels),
        **instances.arrays(),
        "categories": np.frombuffer(json.dumps(sections.categories).encode(), dtype=np.uint8),
    }


def _flatten_images(images: list[ImageEntry], labels: dict[int, int]) -> dict[str, np.ndarray]:
    paths = [image_path(image).encode() for image in images]
    # a class that the file does not have cannot be labelled, so it is nobody's negative
    negatives = [[labels[c] for c in image.neg_category_ids or () if c in labels] for image in images]
    not_exhaustive = [
        [labels[c] for c in image.not_exhaustive_category_ids if c in labels] for image in images
    ]
    return {
        "image_ids": np.array([image.id for image in images], dtype=np.int64),
        "image_sizes_hw": np.array([(i.height, i.width) for i in images], dtype=np.int32).reshape(-1, 2),
        "paths": np.frombuffer(b"".join(paths), dtype=np.uint8),
        "path_offsets": _offsets(paths),
        "is_exhaustive": np.array([image.neg_category_ids is UNSET for image in images], dtype=bool),
        "negatives": np.array([label for row in negatives for label in row], dtype=np.int32),
        "negative_offsets": _offsets(negatives),
        "not_exhaustive": np.array([label for row in not_exhaustive for label in row], dtype=np.int32),
        "not_exhaustive_offsets": _offsets(not_exhaustive),
    }


def _id(category: dict[str, Any]) -> int:
    if not isinstance(category.get("id"), int):
        raise ValueError(f"every category needs a whole number as 'id', got {category}")
    return category["id"]


def _offsets(rows: list[Any]) -> np.ndarray:
    return cumulate([len(row) for row in rows])


@contextmanager
def _no_gc() -> Iterator[None]:
    """Keep the collector from walking a million young objects again and again (2.6 times as fast)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
