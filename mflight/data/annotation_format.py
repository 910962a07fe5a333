"""The entries of an LVIS v1 or COCO instance file, as they stand there."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType


class RLEEntry(msgspec.Struct, gc=False):
    """A run-length code; ``counts`` is compressed text or plain runs, ``size`` is ``(H, W)``."""

    counts: str | list[int]
    size: tuple[int, int]


class AnnotationEntry(msgspec.Struct, gc=False):
    """One instance; ``bbox`` is left, top, width, height in pixels."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: list[list[float]] | RLEEntry
    area: float | None = None
    iscrowd: int = 0


class ImageEntry(msgspec.Struct, gc=False):
    """One image; COCO's has no ``neg_category_ids``, for all of its classes have been looked for."""

    id: int
    height: int
    width: int
    coco_url: str = ""
    file_name: str = ""
    neg_category_ids: tuple[int, ...] | UnsetType = UNSET
    not_exhaustive_category_ids: tuple[int, ...] = ()


class FileSections(msgspec.Struct):
    """A whole file, its long lists not decoded yet."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[dict[str, Any]]


Entry = TypeVar("Entry", AnnotationEntry, ImageEntry)


def decode_entries(entries: Iterable[msgspec.Raw], entry_type: type[Entry], section: str) -> Iterator[Entry]:
    """Decode one entry after another; the error of a faulty one names its place in ``section``."""
    decode = msgspec.json.Decoder(entry_type).decode
    index = 0
    try:
        for index, entry in enumerate(entries):  # noqa: B007
            yield decode(entry)
    except msgspec.DecodeError as error:
        raise msgspec.DecodeError(f"{section}[{index}]: {error}") from error


def is_usable(polygon: Sequence[float]) -> bool:
    """Tell whether a flat list ``x, y, x, y, ...`` is a polygon of at least three whole points."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def image_path(image: ImageEntry) -> str:
    """Return the path below the image folder: by the URL of LVIS files, by the name of others.

    Args:
        image: LVIS's validation images lie in COCO's ``train2017`` and ``val2017``; the URL tells where.

    Returns:
        Such as ``val2017/000000000139.jpg``.

    Raises:
        ValueError: if it has neither a ``coco_url`` nor a ``file_name``.
    """
    if image.coco_url:
        return "/".join(image.coco_url.split("/")[-2:])
    if not image.file_name:
        raise ValueError(f"image {image.id} has neither a coco_url nor a file_name")
    return image.file_name
