"""Collects the instances of an annotation file, chunk by chunk, as flat arrays."""

from collections.abc import Iterable, Sequence

import numpy as np

from mflight.data.annotation_chunk import DROP_REASONS, AnnotationChunk

_BLOCK = 65536  # rows that are put in order at a time


class InstanceArrays:
    """Takes instances in file order and returns them sorted by image.

    Args:
        num_images: in the file.
        num_labels: classes in the file.
    """

    def __init__(self, num_images: int, num_labels: int) -> None:
        self._num_images, self._num_labels = num_images, num_labels
        self._chunks: list[dict[str, np.ndarray]] = []
        self._dropped = np.zeros((len(DROP_REASONS), num_labels + 1), dtype=np.int64)
        self._num_mended = 0

    def extend(self, chunks: Iterable[AnnotationChunk]) -> None:
        """Take annotations, or count why they are dropped.

        Args:
            chunks: in file order.
        """
        for chunk in chunks:
            self._chunks.append(self._flatten(chunk))
            self._num_mended += chunk.num_mended

    def _flatten(self, chunk: AnnotationChunk) -> dict[str, np.ndarray]:
        corners = chunk.boxes_xywh[:, :2]
        boxes = np.concatenate([corners, corners + chunk.boxes_xywh[:, 2:]], axis=1).astype(np.float32)
        keep, has_box = chunk.dropped == -1, (chunk.boxes_xywh[:, 2:] > 0).all(axis=1)
        crowd = chunk.is_crowd & has_box
        for reason, row in enumerate(self._dropped):
            row += np.bincount(chunk.label[chunk.dropped == reason], minlength=len(row))
        of_kept = np.repeat(keep, chunk.num_polygons)
        return {
            "image": chunk.image[keep],
            "ids": chunk.ids[keep],
            "labels": chunk.label[keep],
            "boxes": boxes[keep],
            "areas": chunk.areas_px[keep].astype(np.float32),
            "num_polygons": chunk.num_polygons[keep],
            "num_vertices": chunk.num_vertices[of_kept],
            "vertices": chunk.vertices[np.repeat(of_kept, chunk.num_vertices)]
            if not keep.all()
            else chunk.vertices,
            "rle_lengths": chunk.rle_lengths[keep],
            "rle": np.frombuffer(chunk.rle, dtype=np.uint8)[np.repeat(keep, chunk.rle_lengths)],
            "crowd_image": chunk.image[crowd],
            "crowd_labels": chunk.label[crowd],
            "crowd_boxes": boxes[crowd],
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of all instances, sorted by image and within an image in file order.

        Returns:
            What :func:`mflight.data.annotations.read_annotation_file` says of instances, and of crowds.
        """
        joined = self._join()
        image, num_polygons, rle_lengths = joined["image"], joined["num_polygons"], joined["rle_lengths"]
        num_images = self._num_images
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
            "vertices": _take_rows(joined["vertices"], joined["num_vertices"], polygon_order),
            "rle_offsets": cumulate(rle_lengths[order]),
            "rle": _take_rows(joined["rle"], rle_lengths, order),
            "image_counts": self._count_images(image, joined["labels"]),
            "instance_counts": np.bincount(labels, minlength=self._num_labels + 1)[1:],
            "crowd_offsets": cumulate(np.bincount(joined["crowd_image"], minlength=num_images)),
            "crowd_labels": joined["crowd_labels"][crowd_order],
            "crowd_boxes": joined["crowd_boxes"][crowd_order],
            "num_dropped": self._dropped[:, 1:],
            "num_mended": np.array([self._num_mended]),
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
            "areas": np.zeros(0, dtype=np.float32),
            "vertices": np.zeros((0, 2), dtype=np.float32),
            "rle": np.zeros(0, dtype=np.uint8),
        }

    def _count_images(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        base = self._num_labels + 1
        return np.bincount(np.unique(image * base + labels) % base, minlength=base)[1:]


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
