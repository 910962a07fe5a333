"""LVIS ground truth as flat arrays, sorted by (image, category) cell, and the cells of the federated rule."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from mflight.data.categories import FREQUENCIES, FREQUENCY_OF_LETTER, Category, frequency_of

SegmentationT = TypeVar("SegmentationT")


class _Image(msgspec.Struct):
    id: int
    height: int
    width: int
    neg_category_ids: list[int] | UnsetType = UNSET
    not_exhaustive_category_ids: list[int] = []


class _Category(msgspec.Struct):
    id: int
    name: str = ""
    frequency: str | None = None
    image_count: int | None = None


class _Annotation(msgspec.Struct, Generic[SegmentationT], gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | UnsetType = UNSET
    ignore: int = 0
    iscrowd: int = 0
    segmentation: SegmentationT | UnsetType = UNSET

    @property
    def area_px(self) -> float:
        """The file's area in square pixels, the box's where it tells none."""
        return self.bbox[2] * self.bbox[3] if self.area is UNSET else self.area


class _File(msgspec.Struct, Generic[SegmentationT]):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation[SegmentationT]]


@dataclass(frozen=True)
class GroundTruth:
    """What the evaluator needs of an LVIS annotation file.

    A *cell* is one (image, category) pair; its key is ``image_index * C + category_index``, where both
    indices count in ascending id order. Instances are sorted by cell, in file order within a cell, and
    instances without a positive, finite area are left out, as lvis-api does.

    Shapes: ``I`` images, ``C`` categories, ``G`` instances.

    Attributes:
        image_ids: ``int64[I]`` ascending.
        image_hw: ``int64[I, 2]`` height and width in pixels.
        category_ids: ``int64[C]`` ascending.
        names: ``C`` category names.
        frequencies: ``C`` of "rare", "common", "frequent", or "" where the file does not tell.
        image_counts: ``C`` times the file's ``image_count`` (LVIS: of the training images), None where it
            does not tell.
        cells: ``int64[G]`` ascending cell keys.
        ids: ``int64[G]`` annotation ids.
        boxes_xywh: ``float64[G, 4]`` in pixels.
        areas_px: ``float64[G]`` the file's area, in square pixels; the box's where the file tells none.
        is_ignored: ``bool[G]`` the file's ``ignore`` flag, and crowds.
        is_crowd: ``bool[G]`` the file's ``iscrowd`` flag: a region of many objects, as COCO has them.
        segmentations: ``G`` polygons, RLE dictionaries or their JSON text; None where there is none.
        judged_cells: ``int64[K]`` ascending keys of the cells in which detections count: those that hold
            an instance, those the image lists as negative, and all of an image without
            ``neg_category_ids``, which is taken as annotated exhaustively, as COCO is. None: every cell.
        open_cells: ``int64[L]`` ascending keys of the cells that are not annotated exhaustively.
    """

    image_ids: np.ndarray
    image_hw: np.ndarray
    category_ids: np.ndarray
    names: tuple[str, ...]
    frequencies: tuple[str, ...]
    image_counts: tuple[int | None, ...]
    cells: np.ndarray
    ids: np.ndarray
    boxes_xywh: np.ndarray
    areas_px: np.ndarray
    is_ignored: np.ndarray
    is_crowd: np.ndarray
    segmentations: list[Any]
    judged_cells: np.ndarray | None
    open_cells: np.ndarray

    @classmethod
    def load(cls, source: "GroundTruth | Mapping[str, Any] | str | Path") -> Self:
        """Read ground truth from an LVIS JSON file or from its content as a dictionary, which stays as it is.

        Args:
            source: path, parsed JSON, or a ``GroundTruth``, which is returned unchanged.

        Returns:
            The flat arrays. From a path, outlines stay JSON text until an overlap asks for them.

        Raises:
            FileNotFoundError: if the path does not exist.
            ValueError: if the content breaks LVIS's format, if an id occurs twice, or if an annotation names
                an unknown image or category.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping):
            place = "ground truth"
            try:
                parsed = msgspec.convert(source, _File[Any])
            except msgspec.ValidationError as error:
                raise ValueError(f"{place} is not in LVIS format: {error}") from None
        else:
            place = str(source)
            if not Path(source).is_file():
                raise FileNotFoundError(f"annotations must be an LVIS JSON file, found no file at {place}")
            try:
                parsed = msgspec.json.decode(Path(source).read_bytes(), type=_File[msgspec.Raw])
            except msgspec.DecodeError as error:
                raise ValueError(f"{place} is not an annotation file in LVIS format: {error}") from None
        return cls._from_parsed(parsed, place)

    @classmethod
    def _from_parsed(cls, parsed: _File, place: str) -> Self:
        images = sorted(parsed.images, key=lambda image: image.id)
        categories = sorted(parsed.categories, key=lambda category: category.id)
        image_ids = _unique_ids(images, f"{place}: image id")
        category_ids = _unique_ids(categories, f"{place}: category id")
        _unique_ids(sorted(parsed.annotations, key=lambda entry: entry.id), f"{place}: annotation id")
        cells = cells_of(
            index_of([entry.image_id for entry in parsed.annotations], image_ids, f"{place}: image id"),
            index_of(
                [entry.category_id for entry in parsed.annotations], category_ids, f"{place}: category id"
            ),
            len(category_ids),
        )
        kept = [index for index, entry in enumerate(parsed.annotations) if 0 < entry.area_px < math.inf]
        order = np.asarray(kept, dtype=np.int64)[np.argsort(cells[kept], kind="stable")]
        entries = [parsed.annotations[index] for index in order]
        return cls(
            image_ids=image_ids,
            image_hw=np.array([(image.height, image.width) for image in images], dtype=np.int64).reshape(
                -1, 2
            ),
            category_ids=category_ids,
            names=tuple(category.name for category in categories),
            frequencies=tuple(_frequency_of(category, place) for category in categories),
            image_counts=tuple(category.image_count for category in categories),
            cells=cells[order],
            ids=np.array([entry.id for entry in entries], dtype=np.int64),
            boxes_xywh=np.array([entry.bbox for entry in entries], dtype=np.float64).reshape(-1, 4),
            areas_px=np.array([entry.area_px for entry in entries], dtype=np.float64),
            is_ignored=np.array([bool(entry.ignore or entry.iscrowd) for entry in entries], dtype=bool),
            is_crowd=np.array([bool(entry.iscrowd) for entry in entries], dtype=bool),
            segmentations=[None if e.segmentation is UNSET else e.segmentation for e in entries],
            judged_cells=_judged_cells(images, category_ids, cells[order]),
            open_cells=_listed_cells([image.not_exhaustive_category_ids for image in images], category_ids),
        )

    @property
    def num_categories(self) -> int:
        """Number of categories the file lists."""
        return len(self.category_ids)

    def with_missing_counts_of(self, categories: Iterable[Category]) -> Self:
        """Take frequency and ``image_count`` of a class from the training set where this file tells none.

        Args:
            categories: the classes of the training set; a class that it lacks stays as it is.

        Returns:
            The same instances with these figures.
        """
        known = {category.category_id: category for category in categories}
        found = [known.get(category_id) for category_id in self.category_ids.tolist()]
        frequencies, counts = list(self.frequencies), list(self.image_counts)
        for index, category in enumerate(found):
            if category is not None:
                frequencies[index] = frequencies[index] or category.frequency
                counts[index] = category.image_count if counts[index] is None else counts[index]
        return replace(self, frequencies=tuple(frequencies), image_counts=tuple(counts))

    def check_segmentations(self) -> None:
        """Raise a ValueError that names the first instance without an outline."""
        for index, segmentation in enumerate(self.segmentations):
            if segmentation is None:
                raise ValueError(
                    f'"segm" needs an outline of every instance; annotation {self.ids[index]} has none'
                )


def cells_of(image_index: np.ndarray, category_index: np.ndarray, num_categories: int) -> np.ndarray:
    """Return the cell keys ``int64[N]`` of image and category indices."""
    return np.asarray(image_index, dtype=np.int64) * num_categories + category_index


def is_member(keys: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return ``bool[N]``: whether each of ``keys`` is in the ascending array ``members``."""
    if len(members) == 0:
        return np.zeros(len(keys), dtype=bool)
    return members[np.minimum(np.searchsorted(members, keys), len(members) - 1)] == keys


def index_of(ids: Sequence[int] | np.ndarray, known_ids: np.ndarray, place: str) -> np.ndarray:
    """Return the position of every id in the ascending ``known_ids``.

    Args:
        ids: ``int[N]`` ids to look up.
        known_ids: ``int64[K]`` ascending.
        place: where the ids come from and what they are, the start of the error's sentence.

    Returns:
        ``int64[N]`` positions.

    Raises:
        ValueError: if an id is unknown.
    """
    ids = np.asarray(ids, dtype=np.int64)
    known = is_member(ids, known_ids)
    if not known.all():
        raise ValueError(
            f"{place} {ids[~known][0]} is not one of the {len(known_ids)} that the ground truth lists"
        )
    return np.searchsorted(known_ids, ids)


def _unique_ids(entries: list, place: str) -> np.ndarray:
    ids = np.array([entry.id for entry in entries], dtype=np.int64)
    twice = ids[1:][ids[1:] == ids[:-1]]
    if len(twice):
        raise ValueError(f"{place} {twice[0]} is listed twice")
    return ids


def _frequency_of(category: _Category, place: str) -> str:
    if category.frequency:
        frequency = FREQUENCY_OF_LETTER.get(category.frequency, category.frequency)
        if frequency not in FREQUENCIES:
            raise ValueError(
                f'{place}: frequency must be "r", "c" or "f", category {category.id} has "{frequency}"'
            )
        return frequency
    if category.image_count is None:
        return ""
    return frequency_of(category.image_count)


def _listed_cells(lists: list[list[int]], category_ids: np.ndarray) -> np.ndarray:
    image_index = np.repeat(np.arange(len(lists)), [len(listed) for listed in lists])
    listed_ids = np.array([category_id for listed in lists for category_id in listed], dtype=np.int64)
    known = is_member(listed_ids, category_ids)
    category_index = np.searchsorted(category_ids, listed_ids[known])
    return np.unique(cells_of(image_index[known], category_index, len(category_ids)))


def _judged_cells(
    images: list[_Image], category_ids: np.ndarray, instance_cells: np.ndarray
) -> np.ndarray | None:
    exhaustive = np.flatnonzero([image.neg_category_ids is UNSET for image in images])
    if len(exhaustive) == len(images):
        return None
    listed = [[] if image.neg_category_ids is UNSET else image.neg_category_ids for image in images]
    whole = cells_of(exhaustive[:, None], np.arange(len(category_ids)), len(category_ids)).ravel()
    return np.unique(np.concatenate([_listed_cells(listed, category_ids), whole, instance_cells]))
