"""Collects the instances of an annotation file, chunk by chunk, as flat arrays."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from math import nan
from pathlib import Path
from struct import Struct

import numpy as np
from pycocotools import mask as coco_mask

from mflight.data.annotation_format import AnnotationEntry, ImageEntry, is_usable

DROP_REASONS = ("crowd", "degenerate box", "empty segmentation")
_BLOCK = 65536  # rows that are put in order at a time
_CHUNK = 8192  # what is decoded at a time; a chunk is turned into arrays by a few calls


class InstanceArrays:
    """Takes instances in file order and returns them sorted by image.

    Args:
        images: all images.
        labels: label of a category by its id.
        path: the file, for messages.
    """

    def __init__(self, images: Sequence[ImageEntry], labels: Mapping[int, int], path: Path) -> None:
        self._images, self._path, self._labels = images, path, labels
        self._positions = {image.id: position for position, image in enumerate(images)}
        self._num_labels = len(labels)
        self._chunks: list[dict[str, np.ndarray]] = []
        self._dropped = np.zeros(len(DROP_REASONS), dtype=np.int64)

    def extend(self, annotations: Iterable[AnnotationEntry]) -> None:
        """Take annotations, or count why they are dropped.

        One that names an unknown image or category, or has a run-length code of another size than its image,
        is a ValueError.

        Args:
            annotations: in file order.
        """
        entries = iter(annotations)
        while (chunk := _Chunk(islice(entries, _CHUNK), self._runs)).numbers:
            self._chunks.append(self._flatten(chunk))

    def _flatten(self, chunk: "_Chunk") -> dict[str, np.ndarray]:
        numbers = np.array(chunk.numbers, dtype=np.int64)
        ids, image_ids, category_ids, is_crowd, num_polygons, rle_lengths = numbers.T
        image = np.array([self._positions.get(i, -1) for i in image_ids.tolist()], dtype=np.int64)
        label = np.array([self._labels.get(i, -1) for i in category_ids.tolist()], dtype=np.int32)
        self._check_known(numbers, image, label)
        measures = np.array(chunk.measures)
        corners, sizes, areas = measures[:, :2], measures[:, 2:4], measures[:, 4]
        areas = np.where(np.isnan(areas), sizes.prod(axis=1), areas)
        boxes = np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)
        is_crowd, has_box = is_crowd != 0, (sizes > 0).all(axis=1)
        has_outline = (num_polygons > 0) | (rle_lengths > 0)
        keep, crowd = ~is_crowd & has_box & has_outline, is_crowd & has_box
        reasons = (is_crowd, ~is_crowd & ~has_box, ~is_crowd & has_box & ~has_outline)
        self._dropped += [reason.sum() for reason in reasons]
        return {
            "image": image[keep],
            "ids": ids[keep],
            "labels": label[keep],
            "boxes": boxes[keep],
            "areas": areas[keep].astype(np.float32),
            "num_polygons": num_polygons[keep],
            "num_vertices": np.array(chunk.num_vertices, dtype=np.int64),
            "vertices": np.frombuffer(chunk.vertices, dtype=np.float32),
            "rle_lengths": rle_lengths[keep],
            "rle": np.frombuffer(chunk.rle, dtype=np.uint8),
            "crowd_image": image[crowd],
            "crowd_labels": label[crowd],
            "crowd_boxes": boxes[crowd],
        }

    def _check_known(self, numbers: np.ndarray, image: np.ndarray, label: np.ndarray) -> None:
        unknown = np.flatnonzero((image < 0) | (label < 0))
        if len(unknown):
            annotation_id, image_id, category_id = numbers[unknown[0], :3]
            name = f"image_id {image_id}" if image[unknown[0]] < 0 else f"category_id {category_id}"
            raise ValueError(f"annotation {annotation_id} of {self._path} names the unknown {name}")

    def _runs(self, a: AnnotationEntry) -> bytes:
        """Return the compressed counts of a run-length code."""
        if a.image_id not in self._positions:
            return b""  # it is refused for that
        image = self._images[self._positions[a.image_id]]
        if a.segmentation.size != (image.height, image.width):
            sizes = f"size {list(a.segmentation.size)}, its image {[image.height, image.width]}"
            raise ValueError(f"the run-length code of annotation {a.id} of {self._path} has {sizes}")
        if isinstance(a.segmentation.counts, str):
            return a.segmentation.counts.encode()
        rle = {"size": list(a.segmentation.size), "counts": a.segmentation.counts}
        return coco_mask.frPyObjects(rle, *rle["size"])["counts"]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of all instances, sorted by image and within an image in file order.

        Returns:
            What :func:`mflight.data.annotations.read_annotation_file` says of instances, and of crowds.
        """
        joined = self._join()
        image, num_polygons, rle_lengths = joined["image"], joined["num_polygons"], joined["rle_lengths"]
        num_images = len(self._images)
        order = np.argsort(image, kind="stable")
        polygon_order = _take_rows(np.arange(num_polygons.sum()), num_polygons, order)
        labels = joined["labels"][order]
        crowd_order = np.argsort(joined["crowd_image"], kind="stable")
        return {
            "instance_offsets": cumulate(np.bincount(image, minlength=num_images)),
            "annotation_ids": joined["ids"][order],
            "labels": labels,
            "boxes": joined["boxes"][order],
            "areas": joined["areas"][order],
            "polygon_offsets": cumulate(num_polygons[order]),
            "vertex_offsets": cumulate(joined["num_vertices"][polygon_order]),
            "vertices": _take_rows(joined["vertices"].reshape(-1, 2), joined["num_vertices"], polygon_order),
            "rle_offsets": cumulate(rle_lengths[order]),
            "rle": _take_rows(joined["rle"], rle_lengths, order),
            "image_counts": self._count_images(image, joined["labels"]),
            "instance_counts": np.bincount(labels, minlength=self._num_labels + 1)[1:],
            "crowd_offsets": cumulate(np.bincount(joined["crowd_image"], minlength=num_images)),
            "crowd_labels": joined["crowd_labels"][crowd_order],
            "crowd_boxes": joined["crowd_boxes"][crowd_order],
            "num_dropped": self._dropped,
        }

    def _join(self) -> dict[str, np.ndarray]:
        chunks = self._chunks or [self._nothing()]
        self._chunks = []
        return {name: np.concatenate([chunk.pop(name) for chunk in chunks]) for name in list(chunks[0])}

    def _nothing(self) -> dict[str, np.ndarray]:
        whole = ("image", "ids", "num_polygons", "num_vertices", "rle_lengths", "crowd_image")
        return {
            **{name: np.zeros(0, dtype=np.int64) for name in whole},
            **{name: np.zeros(0, dtype=np.int32) for name in ("labels", "crowd_labels")},
            **{name: np.zeros((0, 4), dtype=np.float32) for name in ("boxes", "crowd_boxes")},
            **{name: np.zeros(0, dtype=np.float32) for name in ("areas", "vertices")},
            "rle": np.zeros(0, dtype=np.uint8),
        }

    def _count_images(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        base = self._num_labels + 1
        return np.bincount(np.unique(image * base + labels) % base, minlength=base)[1:]


class _Chunk:
    """Some thousand annotations; their points are packed at once, while they lie in the processor's cache.

    Args:
        annotations: in file order.
        runs: gives the compressed counts of a run-length code.
    """

    def __init__(
        self, annotations: Iterable[AnnotationEntry], runs: Callable[[AnnotationEntry], bytes]
    ) -> None:
        self.numbers: list[tuple[int, ...]] = []
        self.measures: list[tuple[float, ...]] = []
        self.num_vertices: list[int] = []
        self.vertices, self.rle = bytearray(), bytearray()
        for a in annotations:
            num_polygons, num_runs = 0, 0
            if not a.iscrowd and a.bbox[2] > 0 and a.bbox[3] > 0:
                if isinstance(a.segmentation, list):
                    num_polygons = self._append_polygons(a.segmentation)
                else:
                    code = runs(a)
                    num_runs = len(code)
                    self.rle += code
            self.numbers.append((a.id, a.image_id, a.category_id, a.iscrowd, num_polygons, num_runs))
            self.measures.append((*a.bbox, nan if a.area is None else a.area))

    def _append_polygons(self, polygons: list[list[float]]) -> int:
        count = 0
        for polygon in polygons:
            if is_usable(polygon):
                self.vertices += _packer(len(polygon))(*polygon)
                self.num_vertices.append(len(polygon) // 2)
                count += 1
        return count


@cache
def _packer(length: int) -> Callable[..., bytes]:
    return Struct(f"{length}f").pack


def cumulate(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return int64: the offsets of rows of these lengths, 0 first and their sum last."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _take_rows(values: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the rows ``order`` of rows of ``lengths`` that lie one behind another in ``values``."""
    if (order == np.arange(len(lengths))).all():  # the file has them in this order already
        return values
    starts, lengths = cumulate(lengths)[:-1][order], lengths[order]
    taken, end = np.empty((lengths.sum(), *values.shape[1:]), dtype=values.dtype), 0
    for first in range(0, len(order), _BLOCK):  # indices of all values at once would take twice their memory
        start, length = starts[first : first + _BLOCK], lengths[first : first + _BLOCK]
        index = np.repeat(start - cumulate(length)[:-1], length)
        index += np.arange(len(index))
        taken[end : end + len(index)] = values[index]
        end += len(index)
    return taken
