"""Some thousand annotations at a time: checked and put right by a few calls on arrays."""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from math import nan
from typing import Any

import numpy as np

from mflight.data.annotation_format import AnnotationEntry, ImageEntry, RLEEntry, as_polygons
from mflight.data.findings import Faults
from mflight.functional.run_lengths import compress_code, find_code_faults, measure_codes

DROP_REASONS = (
    "crowd",
    "without an outline",
    "outside of their image",
    "within the first pixel of their image (shares of its size in place of pixels?)",
    "with a box elsewhere than the outline (two corners in place of x, y, width, height?)",
)
"""Why an annotation is no instance; a crowd is a part of its image to ignore."""

_CHUNK = 8192
_MARGIN_PX = 2.0  # of boxes that are compared: some tools round them
_REACH = "outlines and boxes reach further beyond their image than it is large"


@dataclass
class AnnotationChunk:
    """Annotations in file order, ``N`` of them, ``P`` polygons, ``V`` vertices.

    Attributes:
        entries: as they stand in the file.
        ids: int64[N].
        image: int64[N], positions in the list of images.
        label: int32[N].
        boxes_xywh: float64[N, 4], in pixels; the outline's where the file's has no area.
        given_areas_px: float64[N] of the file, NaN where it tells none.
        areas_px: float64[N], positive where there is an outline: the outline's where the file's is not, else
            the box's.
        is_crowd: bool[N].
        dropped: int64[N], position in ``DROP_REASONS``, -1 for an instance, -2 for what is refused.
        num_polygons: int64[N].
        num_vertices: int64[P].
        vertices: float32[V, 2].
        rle_lengths: int64[N].
        rle: compressed counts, one behind the other.
        num_mended: how many boxes are the outline's.
    """

    entries: list[AnnotationEntry]
    ids: np.ndarray
    image: np.ndarray
    label: np.ndarray
    boxes_xywh: np.ndarray = field(init=False)
    given_areas_px: np.ndarray = field(init=False)
    areas_px: np.ndarray = field(init=False)
    is_crowd: np.ndarray = field(init=False)
    dropped: np.ndarray = field(init=False)
    num_polygons: np.ndarray = field(init=False)
    num_vertices: np.ndarray = field(init=False)
    vertices: np.ndarray = field(init=False)
    rle_lengths: np.ndarray = field(init=False)
    rle: bytes = field(init=False)
    num_mended: int = field(init=False)


class ChunkReader:
    """Turns annotations into chunks; what is unusable goes to ``faults``.

    Args:
        images: all images of the file.
        labels: label of a category by its id.
        faults: takes what is wrong.
    """

    def __init__(self, images: Sequence[ImageEntry], labels: Mapping[int, int], faults: Faults) -> None:
        self._positions = {image.id: position for position, image in enumerate(images)}
        self._sizes_hw = np.array([(i.height, i.width) for i in images], dtype=np.int64).reshape(-1, 2)
        self._labels, self._faults = labels, faults
        self._ids: list[np.ndarray] = []

    def read(self, annotations: Iterable[AnnotationEntry]) -> Iterator[AnnotationChunk]:
        """Yield the annotations in chunks, and tell at the end which ids come twice.

        Args:
            annotations: in file order.

        Yields:
            Chunks that are not empty.
        """
        entries = iter(annotations)
        while taken := list(islice(entries, _CHUNK)):
            chunk = self._place(taken)
            if chunk.entries:
                self._pack(chunk)
                self._ids.append(chunk.ids)
                yield chunk
        ids, counts = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._ids]), return_counts=True)
        for one in ids[counts > 1].tolist():
            self._faults.refuse("annotation ids are listed twice", one)

    def _place(self, entries: list[AnnotationEntry]) -> AnnotationChunk:
        """Find image and label of each; what names an unknown one is refused."""
        image = np.array([self._positions.get(a.image_id, -1) for a in entries], dtype=np.int64)
        label = np.array([self._labels.get(a.category_id, -1) for a in entries], dtype=np.int32)
        unknown = (image < 0) | (label < 0)
        for place in np.flatnonzero(unknown).tolist():
            a = entries[place]
            if image[place] < 0:
                self._faults.refuse(
                    "annotations name an unknown image_id", f"{a.image_id} in annotation {a.id}"
                )
            if label[place] < 0:
                name = f"{a.category_id} in annotation {a.id}"
                self._faults.refuse("annotations name an unknown category_id", name)
        if unknown.any():
            entries = [a for a, is_unknown in zip(entries, unknown.tolist(), strict=True) if not is_unknown]
            image, label = image[~unknown], label[~unknown]
        ids = np.array([a.id for a in entries], dtype=np.int64)
        return AnnotationChunk(entries=entries, ids=ids, image=image, label=label)

    def _pack(self, chunk: AnnotationChunk) -> None:
        packer = _Packer(chunk, self._sizes_hw[chunk.image], self._faults)
        packer.pack_outlines()
        packer.settle_boxes()


class _Packer:
    def __init__(self, chunk: AnnotationChunk, sizes_hw: np.ndarray, faults: Faults) -> None:
        self._chunk, self._sizes_hw, self._faults = chunk, sizes_hw, faults
        self._faulty: set[int] = set()

    def pack_outlines(self) -> None:
        chunk = self._chunk
        num_polygons, num_vertices, vertices, codes = [], [], bytearray(), {}
        for row, a in enumerate(chunk.entries):
            outline, count = a.segmentation, 0
            if type(outline) is list:
                count = self._append_polygons(row, outline, vertices, num_vertices)
            elif outline is not None:
                codes[row] = outline
            num_polygons.append(count)
        chunk.num_polygons = np.array(num_polygons, dtype=np.int64)
        chunk.num_vertices = np.array(num_vertices, dtype=np.int64)
        chunk.vertices = np.frombuffer(vertices, dtype=np.float32).reshape(-1, 2)
        self._outline_boxes, self._outline_areas = self._measure_polygons()
        self._pack_codes(codes)

    def _append_polygons(
        self, row: int, outline: list[Any], vertices: bytearray, num_vertices: list[int]
    ) -> int:
        try:
            count = 0
            for polygon in outline:
                length = len(polygon)
                if length < 6 or length & 1:
                    raise TypeError
                packed = _floats(length)(*polygon)
                vertices += packed
                num_vertices.append(length // 2)
                count += 1
            return count
        except (TypeError, struct.error, OverflowError):  # written another way, or too large to be a place
            del vertices[len(vertices) - 8 * sum(num_vertices[len(num_vertices) - count :]) :]
            del num_vertices[len(num_vertices) - count :]
        try:
            polygons = as_polygons(outline)
            vertices += b"".join(_floats(len(polygon))(*polygon) for polygon in polygons)
        except (TypeError, struct.error, OverflowError):
            found = f"{outline}"
            rule = "outlines are no lists of numbers x, y, x, y, ..., as 32-bit floats"
            self._refuse(row, rule, found if len(found) < 60 else f"{found[:60]}...")
            return 0
        num_vertices += [len(polygon) // 2 for polygon in polygons]
        return len(polygons)

    def _measure_polygons(self) -> tuple[np.ndarray, np.ndarray]:
        """Return float64[N, 4] boxes as x1, y1, x2, y2 and float64[N] areas; NaN and 0 without polygons."""
        chunk = self._chunk
        boxes = np.full((len(chunk.entries), 4), nan)
        areas = np.zeros(len(chunk.entries))
        rows = np.flatnonzero(chunk.num_polygons)
        if len(rows):
            last = np.cumsum(chunk.num_polygons[rows]) - 1
            first_polygon = last + 1 - chunk.num_polygons[rows]
            first_vertex = (np.cumsum(chunk.num_vertices) - chunk.num_vertices)[first_polygon]
            boxes[rows, :2] = np.minimum.reduceat(chunk.vertices, first_vertex)
            boxes[rows, 2:] = np.maximum.reduceat(chunk.vertices, first_vertex)
            if any(a.area is None or not a.area > 0 for a in chunk.entries):
                areas[rows] = np.add.reduceat(_polygon_areas(chunk), first_polygon)
        return boxes, areas

    def _pack_codes(self, codes: dict[int, RLEEntry]) -> None:
        chunk = self._chunk
        chunk.rle_lengths = np.zeros(len(chunk.entries), dtype=np.int64)
        sizes_hw = self._sizes_hw[list(codes)]
        for row, code in list(codes.items()):
            if code.size != tuple(self._sizes_hw[row].tolist()):
                sizes = f"{list(code.size)}, the image {self._sizes_hw[row].tolist()}"
                self._refuse(row, "run-length codes are of another size than their image", sizes)
        for place, fault in sorted(
            find_code_faults([code.counts for code in codes.values()], sizes_hw).items()
        ):
            self._refuse(list(codes)[place], "run-length codes are no masks of their image", fault)
        rows = [row for row in codes if row not in self._faulty]
        rles = [compress_code(codes[row].counts, codes[row].size) for row in rows]
        areas, boxes = measure_codes(rles)
        kept = np.flatnonzero(areas)
        rows = np.array(rows, dtype=np.int64)[kept]
        self._outline_areas[rows], boxes = areas[kept], boxes[kept]
        self._outline_boxes[rows] = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        texts = [rles[place]["counts"] for place in kept.tolist()]
        chunk.rle_lengths[rows] = [len(text) for text in texts]
        chunk.rle = b"".join(texts)

    def settle_boxes(self) -> None:
        """Check where outlines and boxes lie, and work out what the file does not tell."""
        chunk, outline = self._chunk, self._outline_boxes
        boxes = self._read_boxes()
        far = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        sides = self._sizes_hw[:, [1, 0, 1, 0]]
        for found in (outline, far):
            beyond = ~((found >= -sides) & (found <= 2 * sides)) & ~np.isnan(found)
            for row in np.flatnonzero(beyond.any(axis=1)).tolist():
                worst = max(found[row].tolist(), key=abs)
                height, width = self._sizes_hw[row].tolist()
                self._refuse(row, _REACH, f"{worst:g} px in {width} x {height} px")
        has_outline = (outline[:, 2:] > outline[:, :2]).all(axis=1) & ~self._is_faulty()
        has_box = (boxes[:, 2:] > 0).all(axis=1)
        mended = has_outline & ~has_box
        boxes[mended] = np.concatenate([outline[:, :2], outline[:, 2:] - outline[:, :2]], axis=1)[mended]
        chunk.num_mended = int(mended.sum())
        has_box = (boxes[:, 2:] > 0).all(axis=1)
        inside = (outline[:, 2:] > 0).all(axis=1) & (outline[:, :2] < self._sizes_hw[:, ::-1]).all(axis=1)
        is_share = (outline[:, 2:] <= 1).all(axis=1) & (self._sizes_hw > 1).all(axis=1)
        apart = ~mended & (_box_ious(outline, far) < 0.5)
        chunk.is_crowd = np.array([bool(a.iscrowd) for a in chunk.entries], dtype=bool)
        reasons = [self._is_faulty(), chunk.is_crowd, ~has_outline | ~has_box, ~inside, is_share, apart]
        chunk.dropped = np.select(reasons, [-2, 0, 1, 2, 3, 4], default=-1)
        chunk.boxes_xywh = np.where(np.isnan(boxes), 0.0, boxes)
        given = np.array([nan if a.area is None else a.area for a in chunk.entries], dtype=np.float64)
        own = np.where(
            has_outline & (self._outline_areas > 0), self._outline_areas, chunk.boxes_xywh[:, 2:].prod(axis=1)
        )
        chunk.given_areas_px = given
        chunk.areas_px = np.where((given > 0) & (given < np.inf), given, own)

    def _read_boxes(self) -> np.ndarray:
        """Return float64[N, 4] as x, y, width, height; NaN where the file has no box."""
        boxes = []
        for row, a in enumerate(self._chunk.entries):
            box = a.bbox
            if not box:
                box = (nan, nan, nan, nan)
            elif len(box) != 4:
                self._refuse(row, "boxes are no four numbers x, y, width, height", box)
                box = (nan, nan, nan, nan)
            boxes.append(box)
        return np.array(boxes, dtype=np.float64)

    def _refuse(self, row: int, rule: str, value: object) -> None:
        a = self._chunk.entries[row]
        self._faulty.add(row)
        self._faults.refuse(rule, f"annotation {a.id} of image {a.image_id}, {value}")

    def _is_faulty(self) -> np.ndarray:
        is_faulty = np.zeros(len(self._chunk.entries), dtype=bool)
        is_faulty[list(self._faulty)] = True
        return is_faulty


def _box_ious(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return float64[N] of two float64[N, 4] as x1, y1, x2, y2, each with a margin around."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]) + 2 * _MARGIN_PX
    both = sides.clip(min=0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 2 * _MARGIN_PX).prod(axis=1) for boxes in (one, other)]
    return both / (areas[0] + areas[1] - both)


def _polygon_areas(chunk: AnnotationChunk) -> np.ndarray:
    """Return float64[P] by the shoelace formula."""
    last = np.cumsum(chunk.num_vertices) - 1
    first = last + 1 - chunk.num_vertices
    following = np.arange(1, len(chunk.vertices) + 1)
    following[last] = first
    x, y = chunk.vertices.astype(np.float64).T
    return np.abs(np.add.reduceat(x * y[following] - x[following] * y, first)) / 2


@cache
def _floats(length: int) -> Callable[..., bytes]:
    return struct.Struct(f"{length}f").pack
