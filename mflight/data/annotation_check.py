"""Check an annotation file with the reader of training: unlike it, go on after a fault and name them all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mflight.data.annotation_format import ImageEntry, open_sections, read_images
from mflight.data.annotations import read_annotation_file, read_classes
from mflight.data.categories import PLACEHOLDERS, Categories, clean_entries, frequency_of
from mflight.data.findings import Findings, GatheredFaults
from mflight.data.left_out import MAX_SHARE, LeftOut

_BOX_TOLERANCE_PX = 1.0  # LVIS's own boxes reach over the edge by fractions of a pixel


@dataclass(frozen=True)
class ClassCounts:
    """What a file holds of one class.

    Attributes:
        name: of the class.
        images: in which it has an instance.
        instances: of it.
        frequency: as training takes it.
    """

    name: str
    images: int
    instances: int
    frequency: str


@dataclass
class AnnotationReport:
    """What an annotation file holds and what is wrong with it.

    Attributes:
        counts: entries of ``images``, ``annotations`` and ``categories``.
        problems: what training and evaluation refuse, or what makes them wrong.
        notes: what is worth knowing.
        images: that are good.
        names: of the classes by ``category_id``.
        classes: in the order of their ids.
    """

    counts: dict[str, int] = field(default_factory=dict)
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    images: list[ImageEntry] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    classes: list[ClassCounts] = field(default_factory=list)


def check_annotations(
    path: Path,
    *,
    published_counts: Mapping[str, int] | None = None,
    is_train: bool = True,
    max_left_out: float = MAX_SHARE,
) -> AnnotationReport:
    """Check one annotation file.

    Args:
        path: JSON in LVIS v1 or COCO instance format.
        published_counts: how many ``images``, ``annotations`` and ``categories`` it should hold.
        is_train: compare the classes' ``image_count`` with the images found; in LVIS's validation file it is
            that of the training set.
        max_left_out: share of the instances from which on leaving out is a problem.

    Returns:
        What was found; a file that is no JSON of this format has that as its only problem.
    """
    faults = GatheredFaults(path)
    report = AnnotationReport(problems=faults.findings)
    sections = open_sections(path, faults)
    if sections is None:
        return report
    for name in ("images", "annotations", "categories"):
        report.counts[name] = found = len(getattr(sections, name))
        expected = (published_counts or {}).get(name, found)
        if found != expected:
            report.problems.add("counts differ from the published", f"{found:,} {name} and not {expected:,}")
    try:
        arrays = read_annotation_file(path, faults)
    except ValueError as error:  # nothing is left without classes
        report.problems.add("file cannot be read", f"{error}".removeprefix(f"{path}: "))
        return report
    report.images = read_images(sections.images, GatheredFaults(path))
    categories = read_classes(arrays)
    report.names = categories.names
    counts = zip(categories, arrays["image_counts"].tolist(), arrays["instance_counts"].tolist(), strict=True)
    report.classes = [ClassCounts(c.name, images, instances, c.frequency) for c, images, instances in counts]
    left_out = LeftOut.of_arrays(arrays)
    if fault := left_out.fault([c.name for c in categories], max_left_out):
        report.problems.add("file loses too much", fault)
    elif left_out.warning():
        report.notes.add("file is used in part", left_out.warning())
    for name in PLACEHOLDERS:
        if any(entry.get("name") == name for entry in sections.categories):
            report.notes.add("categories are placeholders and no classes", name)
    _note_categories(clean_entries(sections.categories, GatheredFaults(path)), report, is_train)
    _note_lists(report)
    _note_instances(arrays, categories, report)
    return report


def _note_categories(entries: list[dict[str, Any]], report: AnnotationReport, is_train: bool) -> None:
    found = {counts.name: counts for counts in report.classes}
    for entry in entries:
        name, letter, said = entry["name"], entry.get("frequency"), entry.get("image_count")
        images = found[name].images
        if letter is None:
            if is_train:
                report.notes.add("categories have no frequency, it is that of their images here", name)
        elif said is not None and frequency_of(said)[0] != letter:
            report.notes.add("frequencies differ from that of their image_count", name)
        if is_train and said is not None and said != images:
            rule = "classes have another number of images than their image_count"
            report.notes.add(rule, f"{name} says {said} and has {images}")
        if is_train and not images:
            report.notes.add(
                "classes have no instance to train on (take them out, or synthesis may draw them)", name
            )


def _note_lists(report: AnnotationReport) -> None:
    """Look at what images say about classes that they do not show."""
    lacking = [image for image in report.images if image.is_exhaustive]
    for image in report.images:
        listed = () if image.is_exhaustive else image.neg_category_ids
        for category_id in (*listed, *(image.not_exhaustive_category_ids or ())):
            if category_id not in report.names:
                report.notes.add("classes that images list are unknown", f"{category_id} of image {image.id}")
    if 0 < len(lacking) < len(report.images):
        rule = "images list neg_category_ids in a part of the file only"
        report.notes.add(rule, f"image {lacking[0].id} does not")
    elif lacking:
        rule = "file without neg_category_ids, its images are taken as labelled exhaustively"
        report.notes.add(rule, f"{len(lacking):,} images")


def _note_instances(arrays: dict[str, np.ndarray], categories: Categories, report: AnnotationReport) -> None:
    image = np.repeat(np.arange(len(arrays["image_ids"])), np.diff(arrays["instance_offsets"]))
    base = len(categories) + 1
    shown = np.unique(image * base + arrays["labels"])
    absent_image = np.repeat(np.arange(len(arrays["image_ids"])), np.diff(arrays["negative_offsets"]))
    for key in np.intersect1d(shown, absent_image * base + arrays["negatives"]).tolist():
        name = f"{categories.category_id_of(key % base)} in image {arrays['image_ids'][key // base]}"
        report.problems.add("classes are listed as absent from an image that shows them", name)
    sizes_wh, boxes = arrays["image_sizes_hw"][image][:, ::-1], arrays["boxes"]
    over = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes_wh).max(axis=1, initial=0)
    for row in np.flatnonzero(over > _BOX_TOLERANCE_PX).tolist():
        width, height = sizes_wh[row].tolist()
        place = f"annotation {arrays['annotation_ids'][row]} of image {arrays['image_ids'][image[row]]}"
        rule = "boxes reach out of their image and are cut"
        report.notes.add(rule, f"{place}, {boxes[row].tolist()} (x1, y1, x2, y2) in {width} x {height} px")
    if num_mended := arrays["num_mended"][0]:
        report.notes.add("boxes are missing or empty, their outlines' stand for them", f"{num_mended:,}")
