"""Check an annotation file entry by entry: unlike the reader it goes on after a fault and names them all."""

import mmap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from mflight.data.annotation_format import AnnotationEntry, FileSections, ImageEntry, image_path, is_usable
from mflight.data.categories import frequency_of
from mflight.data.findings import Findings

_BOX_TOLERANCE_PX = 1.0  # LVIS's own boxes reach over the edge by fractions of a pixel


@dataclass
class AnnotationReport:
    """What an annotation file holds and what is wrong with it.

    Attributes:
        counts: entries of ``images``, ``annotations`` and ``categories``.
        problems: what breaks training or evaluation, or makes it wrong.
        notes: what is worth knowing.
        images: the images by id.
        category_ids: of the file.
    """

    counts: dict[str, int] = field(default_factory=dict)
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    images: dict[int, ImageEntry] = field(default_factory=dict)
    category_ids: set[int] = field(default_factory=set)


def check_annotations(
    path: Path, *, published_counts: Mapping[str, int] | None = None, is_train: bool = True
) -> AnnotationReport:
    """Check one annotation file.

    Args:
        path: JSON in LVIS v1 or COCO instance format.
        published_counts: how many ``images``, ``annotations`` and ``categories`` it should hold.
        is_train: compare the classes' ``image_count`` with the images found; in LVIS's validation file it is
            that of the training set. Images with and without ``neg_category_ids`` may be in one file.

    Returns:
        What was found; a file that is no JSON of this format has that as its only problem.
    """
    report = AnnotationReport()
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            text = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            sections = msgspec.json.decode(text, type=FileSections)
    except msgspec.DecodeError as error:
        report.problems.add(
            "file is no whole LVIS- or COCO-format JSON", f"{path} of {size:,} bytes, {error}"
        )
        return report
    for name in ("images", "annotations", "categories"):
        report.counts[name] = found = len(getattr(sections, name))
        expected = (published_counts or {}).get(name, found)
        if found != expected:
            report.problems.add("counts differ from the published", f"{found:,} {name} and not {expected:,}")
    _check_categories(sections.categories, report)
    _check_images(sections.images, report, is_train)
    image_counts = _check_instances(sections.annotations, report)
    if is_train:
        _check_image_counts(sections.categories, image_counts, report)
    return report


def _check_categories(categories: list[dict[str, Any]], report: AnnotationReport) -> None:
    for entry in categories:
        category_id = entry.get("id")
        if not isinstance(category_id, int) or not isinstance(entry.get("name"), str):
            report.problems.add("categories lack a whole number as id or a name", entry)
            continue
        if category_id in report.category_ids:
            report.problems.add("category ids are listed twice", category_id)
        report.category_ids.add(category_id)
        letter, count = entry.get("frequency"), entry.get("image_count")
        if letter is None:
            report.notes.add("categories have no frequency, it is computed", entry["name"])
        elif letter not in ("r", "c", "f"):
            report.problems.add('frequencies are none of "r", "c", "f"', f"{letter!r} of {entry['name']}")
        elif count is not None and frequency_of(count)[0] != letter:
            report.notes.add("frequencies differ from that of their image_count", entry["name"])


def _check_images(images: list[msgspec.Raw], report: AnnotationReport, is_train: bool) -> None:
    decode = msgspec.json.Decoder(ImageEntry).decode
    lacking = 0
    for index, raw in enumerate(images):
        try:
            image = decode(raw)
            image_path(image)
        except (msgspec.DecodeError, ValueError) as error:
            report.problems.add("images are not of the format", f"images[{index}]: {error}")
            continue
        if image.id in report.images:
            report.problems.add("image ids are listed twice", image.id)
        report.images[image.id] = image
        if min(image.height, image.width) < 1:
            report.problems.add("images have no area", f"image {image.id}, {[image.height, image.width]}")
        lacking += image.neg_category_ids is UNSET
        for category_id in (*(image.neg_category_ids or ()), *image.not_exhaustive_category_ids):
            if category_id not in report.category_ids:
                report.notes.add("classes that images list are unknown", f"{category_id} of image {image.id}")
    if 0 < lacking < len(report.images):
        odd = next(image.id for image in report.images.values() if image.neg_category_ids is UNSET)
        findings = report.notes if is_train else report.problems  # the evaluation refuses such a file
        findings.add("images list neg_category_ids in a part of the file only", f"image {odd} does not")
    elif lacking:
        rule = "file without neg_category_ids, its images are taken as labelled exhaustively"
        report.notes.add(rule, f"{lacking:,} images")


def _check_instances(annotations: list[msgspec.Raw], report: AnnotationReport) -> Counter[int]:
    """Return in how many images each category is."""
    decode = msgspec.json.Decoder(AnnotationEntry).decode
    ids: set[int] = set()
    pairs: set[tuple[int, int]] = set()
    for index, raw in enumerate(annotations):
        try:
            a = decode(raw)
        except msgspec.DecodeError as error:
            report.problems.add("annotations are not of the format", f"annotations[{index}]: {error}")
            continue
        if a.id in ids:
            report.problems.add("annotation ids are listed twice", a.id)
        ids.add(a.id)
        image = report.images.get(a.image_id)
        if image is None:
            report.problems.add("annotations name an unknown image_id", f"{a.image_id} in annotation {a.id}")
        if a.category_id not in report.category_ids:
            name = f"{a.category_id} in annotation {a.id}"
            report.problems.add("annotations name an unknown category_id", name)
        if image is not None:
            _check_instance(a, image, report)
            pairs.add((a.image_id, a.category_id))
    for image_id, category_id in pairs:
        if category_id in (report.images[image_id].neg_category_ids or ()):
            name = f"{category_id} in image {image_id}"
            report.problems.add("classes are listed as absent from an image that shows them", name)
    return Counter(category_id for _, category_id in pairs)


def _check_instance(a: AnnotationEntry, image: ImageEntry, report: AnnotationReport) -> None:
    x, y, width, height = a.bbox
    place = f"annotation {a.id} of image {a.image_id}"
    if a.iscrowd:
        report.notes.add("crowds are not trained on", place)
    elif width <= 0 or height <= 0:
        report.notes.add("boxes without an area are left out", f"{place}, {list(a.bbox)}")
    elif isinstance(a.segmentation, list) and not any(map(is_usable, a.segmentation)):
        report.notes.add("instances without a polygon of three points are left out", place)
    over = max(-x, -y, x + width - image.width, y + height - image.height)
    if over > _BOX_TOLERANCE_PX:
        sizes = f"{list(a.bbox)} in {image.width} x {image.height} px"
        report.problems.add("boxes reach out of their image", f"{place}, {sizes}")
    if not isinstance(a.segmentation, list) and a.segmentation.size != (image.height, image.width):
        sizes = f"{list(a.segmentation.size)}, the image {[image.height, image.width]}"
        report.problems.add("run-length codes are of another size than their image", f"{place}, {sizes}")


def _check_image_counts(
    categories: list[dict[str, Any]], image_counts: Counter[int], report: AnnotationReport
) -> None:
    for entry in categories:
        said, found = entry.get("image_count"), image_counts[entry.get("id", -1)]
        if said is not None and said != found:
            name = f"{entry.get('name')} says {said} and has {found}"
            report.notes.add("classes have another number of images than their image_count", name)
