"""Entries added to an annotation file, whose own entries stay the bytes they are. No torch."""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from mflight.data.categories import frequency_of

_EMPTY_FILE = (
    b'{"info": {"description": "Synthetic images drawn by mflight"}, "licenses": [], '
    b'"images": [], "annotations": [], "categories": []}'
)


class _Image(msgspec.Struct):
    id: int


class _Instance(msgspec.Struct):
    id: int
    image_id: int
    category_id: int


@dataclass
class AddedEntries:
    """What is added to an annotation file.

    Attributes:
        images: with new ids.
        annotations: with new ids.
        categories: by ``id``; used where the file has none of that id.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: dict[int, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file in LVIS v1 or COCO instance format, of which only ids and classes are looked at.

    Attributes:
        sections: all top-level entries.
        images: the entries as bytes.
        annotations: the entries as bytes.
        categories: the classes.
        max_image_id: the highest in use, 0 without images.
        max_annotation_id: the highest in use, 0 without annotations.
        image_counts: images by ``category_id``, counted from the annotations.
        instance_counts: annotations by ``category_id``.
    """

    sections: dict[str, msgspec.Raw]
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[dict[str, Any]]
    max_image_id: int
    max_annotation_id: int
    image_counts: Counter
    instance_counts: Counter

    @classmethod
    def read(cls, path: str | Path | None) -> "AnnotationFile":
        """Read a file; ``None`` gives one without images and classes.

        Args:
            path: the JSON file.

        Returns:
            The file. LVIS v1 train takes its own 1.1 GB of memory and about half a gigabyte more.

        Raises:
            ValueError: if it is not in this format.
        """
        try:
            raw = _EMPTY_FILE if path is None else Path(path).read_bytes()
            sections = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            images, annotations = (
                msgspec.json.decode(sections[key], type=list[msgspec.Raw])
                for key in ("images", "annotations")
            )
            categories = msgspec.json.decode(sections["categories"], type=list[dict[str, Any]])
            image_ids = [msgspec.json.decode(entry, type=_Image).id for entry in images]
            _check_named(categories)
            instances = [msgspec.json.decode(entry, type=_Instance) for entry in annotations]
        except (msgspec.DecodeError, KeyError) as error:
            raise ValueError(f"{path} is no LVIS- or COCO-format annotation file: {error}") from error
        return cls(
            sections=sections,
            images=images,
            annotations=annotations,
            categories=categories,
            max_image_id=max(image_ids, default=0),
            max_annotation_id=max((one.id for one in instances), default=0),
            image_counts=Counter(c for _, c in {(one.image_id, one.category_id) for one in instances}),
            instance_counts=Counter(one.category_id for one in instances),
        )

    def write(self, file: BinaryIO, added: AddedEntries, *, update_frequency: bool = False) -> None:
        """Write the file again, with new entries behind its own and the counts of its classes updated.

        Args:
            file: takes the JSON text.
            added: the new entries.
            update_frequency: let the ``frequency`` of the file's classes follow the new image count.
        """
        known = {entry["id"] for entry in self.categories}
        new = [entry for category_id, entry in sorted(added.categories.items()) if category_id not in known]
        instances = Counter(entry["category_id"] for entry in added.annotations)
        pairs = {(entry["image_id"], entry["category_id"]) for entry in added.annotations}
        images = Counter(category_id for _, category_id in pairs)
        categories = []
        for entry in (*self.categories, *new):
            category_id = entry["id"]
            image_count = entry.get("image_count", self.image_counts[category_id]) + images[category_id]
            instance_count = entry.get("instance_count", self.instance_counts[category_id])
            counted = {"image_count": image_count, "instance_count": instance_count + instances[category_id]}
            if update_frequency or "frequency" not in entry:
                counted["frequency"] = frequency_of(image_count)[0]
            categories.append({**entry, **counted})
        file.write(b"{")
        for key, section in self.sections.items():
            if key not in ("images", "annotations", "categories"):
                file.write(msgspec.json.encode(key) + b":" + bytes(section) + b",\n")
        file.write(b'"categories":' + msgspec.json.encode(categories))
        _write_list(file, "images", self.images, added.images)
        _write_list(file, "annotations", self.annotations, added.annotations)
        file.write(b"}\n")


def _write_list(
    file: BinaryIO, key: str, own: Iterable[msgspec.Raw], added: Iterable[dict[str, Any]]
) -> None:
    file.write(b',\n"' + key.encode() + b'":[')
    separator = b"\n"
    for entry in itertools.chain(map(bytes, own), map(msgspec.json.encode, added)):
        file.write(separator + entry)
        separator = b",\n"
    file.write(b"]")


def _check_named(categories: list[dict[str, Any]]) -> None:
    """Raise KeyError unless each class has its id and name."""
    for entry in categories:
        for key in ("id", "name"):
            if key not in entry:
                raise KeyError(f"a category without {key!r}: {entry}")
