"""Read LVIS v1 and COCO annotation files into flat arrays that leave no Python object behind."""

import gc
import json
import mmap
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

FORMAT_VERSION = 1
"""Number of the array layout below; raise it when the layout changes, so that cached arrays are made anew."""

DROP_REASONS = ("crowd", "degenerate box", "empty segmentation")
_CROWD, _DEGENERATE, _EMPTY = range(len(DROP_REASONS))


class _RLE(msgspec.Struct):
    counts: str | list[int]
    size: tuple[int, int]


class _Annotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: list[list[float]] | _RLE
    area: float | None = None
    iscrowd: int = 0


class _Image(msgspec.Struct):
    id: int
    height: int
    width: int
    coco_url: str = ""
    file_name: str = ""
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()


_Entry = TypeVar("_Entry", _Annotation, _Image)


class _File(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[dict[str, Any]]


def read_annotation_file(path: Path) -> dict[str, np.ndarray]:
    """Read an annotation file in LVIS v1 or COCO instance format.

    The file is mapped, not loaded, and its entries are decoded one at a time, so the peak is the size of
    the arrays (0.5 GB for LVIS v1 train) and of the mapped file, where Python objects of the whole would
    take 6 GB. Crowds, boxes without an area and segmentations without a polygon of three points are dropped
    and counted.

    Shapes: ``I`` images in the order of the file, ``A`` instances sorted by image, ``P`` polygons, ``V``
        vertices.

    Args:
        path: the JSON file.

    Returns:
        | ``image_ids`` int64[I], ``image_sizes_hw`` int32[I, 2] in pixels
        | ``paths`` uint8: text of all image paths, image ``i`` has ``path_offsets[i]:path_offsets[i + 1]``
        | ``negatives`` and ``not_exhaustive`` int32 labels, with ``negative_offsets``,
          ``not_exhaustive_offsets``
        | ``instance_offsets`` int64[I + 1], ``annotation_ids`` int64[A], ``labels`` int32[A] in ``1..C``
        | ``boxes`` float32[A, 4] xyxy in pixels, ``areas`` float32[A] in square pixels
        | ``polygon_offsets`` int64[A + 1] into the polygons, ``vertex_offsets`` int64[P + 1] into the
          vertices
        | ``vertices`` float32[V, 2], x and y in pixels
        | ``rle`` uint8: compressed counts, instance ``a`` has ``rle_offsets[a]:rle_offsets[a + 1]``
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
    sections = msgspec.json.decode(text, type=_File)
    labels = {c.get("id"): label for label, c in enumerate(sorted(sections.categories, key=_id), start=1)}
    images = list(_decode(sections.images, _Image, "images"))
    instances = _Instances({image.id: i for i, image in enumerate(images)}, images, labels, path)
    for annotation in _decode(sections.annotations, _Annotation, "annotations"):
        instances.append(annotation)
    return {
        **_flatten_images(images, labels),
        **instances.arrays(),
        "categories": np.frombuffer(json.dumps(sections.categories).encode(), dtype=np.uint8),
    }


def _decode(entries: list[msgspec.Raw], entry_type: type[_Entry], section: str) -> Iterator[_Entry]:
    decode = msgspec.json.Decoder(entry_type).decode
    index = 0
    try:
        for index, entry in enumerate(entries):  # noqa: B007
            yield decode(entry)
    except msgspec.DecodeError as error:
        raise msgspec.DecodeError(f"{section}[{index}]: {error}") from error


def _flatten_images(images: list[_Image], labels: dict[int, int]) -> dict[str, np.ndarray]:
    paths = [_image_path(image).encode() for image in images]
    # a class that the file does not have cannot be labelled, so it is nobody's negative
    negatives = [[labels[c] for c in image.neg_category_ids if c in labels] for image in images]
    not_exhaustive = [
        [labels[c] for c in image.not_exhaustive_category_ids if c in labels] for image in images
    ]
    return {
        "image_ids": np.array([image.id for image in images], dtype=np.int64),
        "image_sizes_hw": np.array([(i.height, i.width) for i in images], dtype=np.int32).reshape(-1, 2),
        "paths": np.frombuffer(b"".join(paths), dtype=np.uint8),
        "path_offsets": _offsets(paths),
        "negatives": np.array([label for row in negatives for label in row], dtype=np.int32),
        "negative_offsets": _offsets(negatives),
        "not_exhaustive": np.array([label for row in not_exhaustive for label in row], dtype=np.int32),
        "not_exhaustive_offsets": _offsets(not_exhaustive),
    }


class _Instances:
    """Collects the instances in file order, as growing flat arrays, and sorts them by image at the end.

    Args:
        positions: index of an image by its id.
        images: all images.
        labels: label of a category by its id.
        path: the file, for messages.
    """

    def __init__(
        self, positions: dict[int, int], images: list[_Image], labels: dict[int, int], path: Path
    ) -> None:
        self._positions, self._images, self._labels, self._path = positions, images, labels, path
        self._image, self._ids, self._label = array("q"), array("q"), array("i")
        self._boxes, self._areas, self._vertices = array("f"), array("f"), array("f")
        self._num_polygons, self._num_vertices, self._rle_lengths = array("q"), array("q"), array("q")
        self._rle = bytearray()
        self._dropped = [0] * len(DROP_REASONS)

    def append(self, a: _Annotation) -> None:
        """Take one annotation, or count why it is dropped."""
        position, label = self._positions.get(a.image_id), self._labels.get(a.category_id)
        if position is None or label is None:
            unknown = f"image_id {a.image_id}" if position is None else f"category_id {a.category_id}"
            raise ValueError(f"annotation {a.id} of {self._path} names the unknown {unknown}")
        x, y, width, height = a.bbox
        polygons, rle = self._outline(a, self._images[position])
        if a.iscrowd or width <= 0 or height <= 0 or not (polygons or rle):
            reason = _CROWD if a.iscrowd else _EMPTY if width > 0 and height > 0 else _DEGENERATE
            self._dropped[reason] += 1
            return
        self._image.append(position)
        self._ids.append(a.id)
        self._label.append(label)
        self._boxes.extend((x, y, x + width, y + height))
        self._areas.append(width * height if a.area is None else a.area)
        self._num_polygons.append(len(polygons))
        for polygon in polygons:
            self._num_vertices.append(len(polygon) // 2)
            self._vertices.extend(polygon)
        self._rle_lengths.append(len(rle))
        self._rle += rle

    def _outline(self, a: _Annotation, image: _Image) -> tuple[list[list[float]], bytes]:
        """Return the usable polygons, or the compressed counts of a run-length code."""
        if isinstance(a.segmentation, list):
            return [p for p in a.segmentation if len(p) >= 6 and len(p) % 2 == 0], b""
        if a.segmentation.size != (image.height, image.width):
            sizes = f"size {list(a.segmentation.size)}, its image {[image.height, image.width]}"
            raise ValueError(f"the run-length code of annotation {a.id} of {self._path} has {sizes}")
        if isinstance(a.segmentation.counts, str):
            return [], a.segmentation.counts.encode()
        rle = {"size": list(a.segmentation.size), "counts": a.segmentation.counts}
        return [], coco_mask.frPyObjects(rle, *rle["size"])["counts"]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of all instances, sorted by image and within an image in file order."""
        image = np.array(self._image, dtype=np.int64)
        order = np.argsort(image, kind="stable")
        num_polygons = np.array(self._num_polygons, dtype=np.int64)
        num_vertices = np.array(self._num_vertices, dtype=np.int64)
        polygon_order = _ranges(_starts(num_polygons), num_polygons, order)
        vertex_order = _ranges(_starts(num_vertices), num_vertices, polygon_order)
        rle_lengths = np.array(self._rle_lengths, dtype=np.int64)
        rle_order = _ranges(_starts(rle_lengths), rle_lengths, order)
        return {
            "instance_offsets": _cumulate(np.bincount(image, minlength=len(self._images))),
            "annotation_ids": np.array(self._ids, dtype=np.int64)[order],
            "labels": np.array(self._label, dtype=np.int32)[order],
            "boxes": np.array(self._boxes, dtype=np.float32).reshape(-1, 4)[order],
            "areas": np.array(self._areas, dtype=np.float32)[order],
            "polygon_offsets": _cumulate(num_polygons[order]),
            "vertex_offsets": _cumulate(num_vertices[polygon_order]),
            "vertices": np.array(self._vertices, dtype=np.float32).reshape(-1, 2)[vertex_order],
            "rle_offsets": _cumulate(rle_lengths[order]),
            "rle": np.frombuffer(bytes(self._rle), dtype=np.uint8)[rle_order],
            "num_dropped": np.array(self._dropped, dtype=np.int64),
        }


def _image_path(image: _Image) -> str:
    """Return the path below the image folder: by the URL of LVIS files, by the name of others."""
    if image.coco_url:
        return "/".join(image.coco_url.split("/")[-2:])
    if not image.file_name:
        raise ValueError(f"image {image.id} has neither a coco_url nor a file_name")
    return image.file_name


def _id(category: dict[str, Any]) -> int:
    if not isinstance(category.get("id"), int):
        raise ValueError(f"every category needs a whole number as 'id', got {category}")
    return category["id"]


def _ranges(starts: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the positions ``starts[o] .. starts[o] + lengths[o] - 1`` of each ``o`` in ``order``, joined."""
    lengths = lengths[order]
    first = np.repeat(starts[order] - _starts(lengths), lengths)
    return first + np.arange(len(first))


def _starts(lengths: np.ndarray) -> np.ndarray:
    return _cumulate(lengths)[:-1]


def _cumulate(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _offsets(rows: list[Any]) -> np.ndarray:
    return _cumulate(np.array([len(row) for row in rows], dtype=np.int64))


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
