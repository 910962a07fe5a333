"""LVIS ground truth as flat arrays, sorted by (image, category) cell, and the cells of the federated rule."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from mflight.data.annotation_chunk import ChunkReader
from mflight.data.annotation_format import (
    AnnotationEntry,
    FileSections,
    ImageEntry,
    decode_entries,
    open_sections,
    read_images,
)
from mflight.data.categories import FREQUENCY_OF_LETTER, Category, clean_entries, frequency_of
from mflight.data.class_names import name_conflict
from mflight.data.findings import Faults
from mflight.evaluation.annotated_instances import (
    AnnotatedInstances,
    cells_of,
    instances_of_chunk,
    join_by_cell,
)

_MAX_WITHOUT_OUTLINE = 0.1  # share of the instances
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GroundTruth(AnnotatedInstances):
    """What the evaluator needs of an LVIS annotation file.

    A *cell* is one (image, category) pair; its key is ``image_index * C + category_index``, where both
    indices count in ascending id order. Instances are sorted by cell, in file order within a cell, and
    instances without a positive, finite area are left out, as lvis-api does; in a file without any
    ``neg_category_ids``, a COCO file, they have the area of their outline and count, as in pycocotools. The
    file is read and refused as for training. Annotation id 0 is an id like others here, where lvis-api reads
    it as "no match".

    Shapes: ``I`` images, ``C`` categories, ``G`` instances.

    Attributes:
        image_ids: ``int64[I]`` ascending.
        image_hw: ``int64[I, 2]`` height and width in pixels.
        category_ids: ``int64[C]`` ascending.
        names: ``C`` category names.
        frequencies: ``C`` of "rare", "common", "frequent", or "" where the file does not tell.
        image_counts: ``C`` times the file's ``image_count`` (LVIS: of the training images), None where it
            does not tell.
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
        """
        if isinstance(source, cls):
            return source
        is_parsed = isinstance(source, Mapping)
        if not is_parsed and not Path(source).is_file():
            raise FileNotFoundError(f"annotations must be an LVIS JSON file, found no file at {source}")
        faults = Faults("ground truth" if is_parsed else source)
        sections = open_sections(source if is_parsed else Path(source), faults)
        return cls._from_sections(sections, faults)

    @classmethod
    def _from_sections(cls, sections: FileSections, faults: Faults) -> Self:
        images = sorted(read_images(sections.images, faults), key=lambda image: image.id)
        categories = sorted(clean_entries(sections.categories, faults), key=lambda category: category["id"])
        index_of_id = {category["id"]: index for index, category in enumerate(categories)}
        annotations = decode_entries(sections.annotations, AnnotationEntry, "annotations", faults)
        is_coco = all(image.is_exhaustive for image in images)
        parts, position = [], 0
        for chunk in ChunkReader(images, index_of_id, faults).read(annotations):
            entries = sections.annotations[position : position + len(chunk.entries)]
            parts.append(instances_of_chunk(chunk, entries, len(categories), is_coco, faults))
            position += len(entries)
        found = join_by_cell(parts)
        if num_left_out := position - len(found.cells):
            _log.warning("%s: %d annotations without an area are left out", faults.place, num_left_out)
        category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
        sizes_hw = [(image.height, image.width) for image in images]
        return cls(
            image_ids=np.array([image.id for image in images], dtype=np.int64),
            image_hw=np.array(sizes_hw, dtype=np.int64).reshape(-1, 2),
            category_ids=category_ids,
            names=tuple(category["name"] for category in categories),
            frequencies=tuple(_frequency_of(category) for category in categories),
            image_counts=tuple(category.get("image_count") for category in categories),
            **vars(found),
            judged_cells=_judged_cells(images, category_ids, found.cells),
            open_cells=_listed_cells(
                [image.not_exhaustive_category_ids or () for image in images], category_ids
            ),
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

        Raises:
            ValueError: if a class has another name there.
        """
        known = {category.category_id: category for category in categories}
        names = {category_id: category.name for category_id, category in known.items()}
        own = dict(zip(self.category_ids.tolist(), self.names, strict=True))
        if conflict := name_conflict(names, own):
            raise ValueError(f"training and validation annotations must name the same classes: {conflict}")
        found = [known.get(category_id) for category_id in self.category_ids.tolist()]
        frequencies, counts = list(self.frequencies), list(self.image_counts)
        for index, category in enumerate(found):
            if category is not None:
                frequencies[index] = frequencies[index] or category.frequency
                counts[index] = category.image_count if counts[index] is None else counts[index]
        return replace(self, frequencies=tuple(frequencies), image_counts=tuple(counts))

    def check_segmentations(self) -> None:
        """Raise a ValueError if a tenth of the instances have no outline; fewer count as never found."""
        without = [index for index, outline in enumerate(self.segmentations) if outline is None]
        if not without:
            return
        told = (
            f"{len(without):,} of {len(self.segmentations):,} annotations have no outline, annotation "
            f"{self.ids[without[0]]} is the first"
        )
        if len(without) >= _MAX_WITHOUT_OUTLINE * len(self.segmentations):
            raise ValueError(f'"segm" needs outlines, {told}; iou_types=[bbox] scores boxes alone')
        _log.warning("%s; no mask can find them", told)


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


def _frequency_of(category: Mapping[str, Any]) -> str:
    if "frequency" in category:
        return FREQUENCY_OF_LETTER[category["frequency"]]
    return frequency_of(category["image_count"]) if "image_count" in category else ""


def _listed_cells(lists: list[Sequence[int]], category_ids: np.ndarray) -> np.ndarray:
    place = {category_id: index for index, category_id in enumerate(category_ids.tolist())}
    pairs = [(image, place[one]) for image, listed in enumerate(lists) for one in listed if one in place]
    image_index, category_index = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return np.unique(cells_of(image_index, category_index, len(category_ids)))


def _judged_cells(
    images: list[ImageEntry], category_ids: np.ndarray, instance_cells: np.ndarray
) -> np.ndarray | None:
    exhaustive = np.flatnonzero([image.is_exhaustive for image in images])
    if len(exhaustive) == len(images):
        return None
    listed = [() if image.is_exhaustive else image.neg_category_ids for image in images]
    whole = cells_of(exhaustive[:, None], np.arange(len(category_ids)), len(category_ids)).ravel()
    return np.unique(np.concatenate([_listed_cells(listed, category_ids), whole, instance_cells]))
