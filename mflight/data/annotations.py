"""Read LVIS v1 and COCO annotation files into flat arrays that leave no Python object behind."""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mflight.data.annotation_chunk import ChunkReader
from mflight.data.annotation_format import (
    AnnotationEntry,
    ImageEntry,
    decode_entries,
    image_paths,
    open_sections,
    read_images,
)
from mflight.data.array_cache import cached_arrays
from mflight.data.categories import Categories, clean_entries
from mflight.data.findings import Faults
from mflight.data.instance_arrays import InstanceArrays, cumulate

FORMAT_VERSION = 4
"""Number of the array layout below; raise it when the layout changes, so that cached arrays are made anew."""


def read_annotation_file(path: Path, faults: Faults | None = None) -> dict[str, np.ndarray]:
    """Read an annotation file in LVIS v1 or COCO instance format.

    The file is mapped, not loaded, and its entries are decoded some thousand at a time, so the peak is the
    size of the arrays (0.5 GB for LVIS v1 train) and of the mapped file, where Python objects of the whole
    would take 6 GB. What can be used is used: polygons in each of COCO's ways of writing, truth values for
    numbers, the outline's box or area where the file's is missing or 0. Crowds, and instances whose outline
    is missing or outside of the image, are dropped and counted; all else that is no label is refused.

    Shapes: ``I`` images in the order of the file, ``A`` instances sorted by image, ``P`` polygons, ``V``
        vertices, ``C`` classes in the order of their ids, ``D`` crowds, ``R`` reasons.

    Args:
        path: the JSON file.
        faults: takes what is refused; ``None`` raises it.

    Returns:
        | ``image_ids`` int64[I], ``image_sizes_hw`` int32[I, 2] in pixels
        | ``paths`` uint8: text of all image paths, image ``i`` has ``path_offsets[i]:path_offsets[i + 1]``,
          the likeliest first, with a line end between two
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
        | ``categories`` uint8: JSON text of the file's category list, ``num_dropped`` int64[R, C] by
          ``DROP_REASONS``, ``num_mended`` int64[1] boxes that are the outline's

    Raises:
        ValueError: if the file is not in this format or has no class, or by ``faults``.
    """
    faults = faults or Faults(path)
    with _no_gc():
        sections = open_sections(path, faults)
        categories = clean_entries(sections.categories, faults) if sections else []
        if not categories:
            raise ValueError(f"{path}: it lists no categories")
        labels = {c["id"]: label for label, c in enumerate(sorted(categories, key=_id), start=1)}
        images = read_images(sections.images, faults)
        for image in images:
            if not image_paths(image):
                faults.refuse("images have neither a file_name nor a coco_url", f"image {image.id}")
        instances = InstanceArrays(len(images), len(labels))
        annotations = decode_entries(sections.annotations, AnnotationEntry, "annotations", faults)
        instances.extend(ChunkReader(images, labels, faults).read(annotations))
        return {
            **_flatten_images(images, labels),
            **instances.arrays(),
            "categories": np.frombuffer(json.dumps(categories).encode(), dtype=np.uint8),
        }


def open_annotation_file(path: Path, cache_dir: Path | None) -> dict[str, np.ndarray]:
    """Return the arrays of ``read_annotation_file``, from the cache where there is one.

    Args:
        path: the JSON file.
        cache_dir: folder of the arrays; ``None`` reads the file each time.

    Returns:
        The arrays, mapped read-only where they are cached.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotation_file {path} does not exist")
    if cache_dir is None:
        return read_annotation_file(path)
    return cached_arrays(path, cache_dir, FORMAT_VERSION, lambda: read_annotation_file(path))


def read_classes(arrays: Mapping[str, np.ndarray]) -> Categories:
    """Return the classes of a file from its arrays, with the counts found where it tells none."""
    entries = json.loads(arrays["categories"].tobytes())
    ids = sorted(entry["id"] for entry in entries)
    return Categories.from_lvis(
        entries,
        image_counts=dict(zip(ids, arrays["image_counts"].tolist(), strict=True)),
        instance_counts=dict(zip(ids, arrays["instance_counts"].tolist(), strict=True)),
    )


def _flatten_images(images: list[ImageEntry], labels: dict[int, int]) -> dict[str, np.ndarray]:
    paths = ["\n".join(image_paths(image)).encode() for image in images]
    # a class that the file does not have cannot be labelled, so it is nobody's negative
    negatives = [[labels[c] for c in image.neg_category_ids or () if c in labels] for image in images]
    not_exhaustive = [
        [labels[c] for c in image.not_exhaustive_category_ids or () if c in labels] for image in images
    ]
    return {
        "image_ids": np.array([image.id for image in images], dtype=np.int64),
        "image_sizes_hw": np.array([(i.height, i.width) for i in images], dtype=np.int32).reshape(-1, 2),
        "paths": np.frombuffer(b"".join(paths), dtype=np.uint8),
        "path_offsets": _offsets(paths),
        "is_exhaustive": np.array([image.is_exhaustive for image in images], dtype=bool),
        "negatives": np.array([label for row in negatives for label in row], dtype=np.int32),
        "negative_offsets": _offsets(negatives),
        "not_exhaustive": np.array([label for row in not_exhaustive for label in row], dtype=np.int32),
        "not_exhaustive_offsets": _offsets(not_exhaustive),
    }


def _id(category: dict[str, Any]) -> int:
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
