"""The entries of an LVIS v1 or COCO instance file, and how loosely they may be written."""

import mmap
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from mflight.data.findings import Faults

NO_FORMAT = "file is no LVIS- or COCO-format annotation file"
_LONGEST_ID = 1 << 63
_MOST_PX = 1 << 30  # of an image: COCO's code counts pixels in 32 bits


class RLEEntry(msgspec.Struct, gc=False):
    """A run-length code; ``counts`` is compressed text or plain runs, ``size`` is ``(H, W)``."""

    counts: Any
    size: tuple[int, int]


class AnnotationEntry(msgspec.Struct, gc=False):
    """One instance; ``bbox`` is left, top, width, height in pixels; polygons have a form of ``as_polygons``.

    COCO's tools write ``iscrowd`` as a number or a truth value; what is null or absent is worked out.
    """

    id: int
    image_id: int
    category_id: int
    bbox: list[float] | None = None
    segmentation: list[Any] | RLEEntry | None = None
    area: float | None = None
    iscrowd: bool | int | float | None = None
    ignore: bool | int | float | None = None


class ImageEntry(msgspec.Struct, gc=False):
    """One image; COCO's has no ``neg_category_ids``, for all of its classes have been looked for."""

    id: int
    height: int
    width: int
    coco_url: str | None = None
    file_name: str | None = None
    neg_category_ids: tuple[int, ...] | UnsetType | None = UNSET
    not_exhaustive_category_ids: tuple[int, ...] | None = None

    @property
    def is_exhaustive(self) -> bool:
        """Whether all classes were looked for in it."""
        return self.neg_category_ids is UNSET or self.neg_category_ids is None


class FileSections(msgspec.Struct):
    """A whole file, its long lists not decoded yet; or its content, already parsed."""

    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


class _RawSections(FileSections):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[dict[str, Any]]


Entry = TypeVar("Entry", AnnotationEntry, ImageEntry)


def open_sections(source: Path | Mapping[str, Any], faults: Faults) -> FileSections | None:
    """Map a file and find its three lists; a mapping is a file that is parsed already.

    Args:
        source: the JSON file, or its content.
        faults: takes what is wrong.

    Returns:
        The lists, or ``None`` where ``faults`` has let pass that this is no such file.
    """
    try:
        if isinstance(source, Mapping):
            return msgspec.convert(source, FileSections)
        if not source.stat().st_size:
            faults.refuse(NO_FORMAT, "it is empty")
            return None
        with source.open("rb") as handle:
            text = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped when its last view goes
            start = len(BOM_UTF8) if text[: len(BOM_UTF8)] == BOM_UTF8 else 0  # which Windows' editors write
            return msgspec.json.decode(memoryview(text)[start:], type=_RawSections)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        is_file = isinstance(source, Path)
        faults.refuse(NO_FORMAT, tell_decode_error(error, source.read_bytes()) if is_file else error)
        return None


def tell_decode_error(error: Exception, text: bytes) -> str:
    """Add to an error of JSON the text around its place, and the size of the file: it may be cut short."""
    if text.startswith((b"\x1f\x8b", b"PK")):
        return "it is compressed, unpack it"
    place = re.search(r"\(byte (\d+)\)", str(error))
    around = text[max(0, int(place[1]) - 30) : int(place[1]) + 30] if place else b""
    shown = f" at {around.decode(errors='replace')!r}" if around else ""
    return f"{error}{shown}, in a file of {len(text):,} bytes"


def decode_entries(
    entries: Iterable[Any], kind: type[Entry], section: str, faults: Faults
) -> Iterator[Entry]:
    """Decode one entry after another; a faulty one is told with its place in ``section``, and passed over."""
    decode = msgspec.json.Decoder(kind, strict=False).decode
    for index, entry in enumerate(entries):
        try:
            decoded = (
                decode(entry) if type(entry) is msgspec.Raw else msgspec.convert(entry, kind, strict=False)
            )
        except msgspec.DecodeError as error:
            faults.refuse(f"{section} are not of the format", f"{section}[{index}]: {error}")
            continue
        if not -_LONGEST_ID <= decoded.id < _LONGEST_ID:
            faults.refuse(f"ids in {section} do not fit into 64 bits", f"{decoded.id} of {section}[{index}]")
            continue
        yield decoded


def read_images(entries: Iterable[Any], faults: Faults) -> list[ImageEntry]:
    """Decode and check the images of a file.

    Args:
        entries: the list ``images``.
        faults: takes what is wrong.

    Returns:
        The images in file order, without those that ``faults`` has let pass.
    """
    images: dict[int, ImageEntry] = {}
    paths: dict[str, int] = {}
    for image in decode_entries(entries, ImageEntry, "images", faults):
        if image.id in images:
            faults.refuse("image ids are listed twice", f"{image.id}")
            continue
        if min(image.height, image.width) < 1 or image.height * image.width > _MOST_PX:
            rule = f"images are no pictures of 1 to {_MOST_PX:,} px"
            faults.refuse(rule, f"image {image.id}, height {image.height}, width {image.width}")
            continue
        images[image.id] = image
        for path in image_paths(image)[:1]:
            first = paths.setdefault(path, image.id)
            if first != image.id:
                faults.refuse("image files are listed under two ids", f"{path} as {first} and {image.id}")
    return list(images.values())


def image_paths(image: ImageEntry) -> list[str]:
    """Return where the file of an image may lie below the image folder, the likeliest place first.

    Args:
        image: by its ``file_name``; LVIS's have none, and their URL tells which of COCO's folders it is.

    Returns:
        Such as ``["000000000139.jpg", "val2017/000000000139.jpg"]``; empty where it has neither name.
    """
    paths = []
    if image.file_name:
        paths.append(image.file_name.replace("\\", "/"))
    if image.coco_url:
        paths.append("/".join(image.coco_url.split("/")[-2:]))
    return paths


def as_polygons(segmentation: list[Any]) -> list[list[float]]:
    """Return flat lists ``x, y, x, y, ...``, whichever way COCO's tools have written the polygons.

    Args:
        segmentation: flat lists; or one of them alone; or lists of points; or one list of points.

    Returns:
        The polygons of at least three whole points.

    Raises:
        TypeError: if a coordinate is no number.

    Example:
        >>> as_polygons([[1, 1], [5, 1], [5, 4]])
        [[1, 1, 5, 1, 5, 4]]
    """
    if segmentation and not isinstance(segmentation[0], list | tuple):
        segmentation = [segmentation]
    elif len(segmentation) >= 3 and all(len(each) == 2 and not _is_nested(each) for each in segmentation):
        segmentation = [[value for point in segmentation for value in point]]
    polygons = []
    for polygon in segmentation:
        if _is_nested(polygon):
            polygon = [value for point in polygon for value in point[:2]]
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in polygon):
            raise TypeError("a polygon must hold numbers")
        if len(polygon) >= 6 and len(polygon) % 2 == 0:
            polygons.append(polygon)
    return polygons


def polygon_fault(segmentation: list[Any], size_hw: Sequence[int]) -> str:
    """Say what makes polygons no outline in an image of ``(H, W)`` px; empty if nothing does."""
    try:
        polygons = as_polygons(segmentation)
    except TypeError as error:
        return str(error)
    height, width = size_hw
    for polygon in polygons:
        for side, values in ((width, polygon[0::2]), (height, polygon[1::2])):
            for value in (min(values), max(values)):
                if not -side <= value <= 2 * side:
                    return f"{value:g} px in {width} x {height} px is further beyond it than it is large"
    return ""


def _is_nested(polygon: Any) -> bool:
    return bool(polygon) and isinstance(polygon[0], list | tuple)
