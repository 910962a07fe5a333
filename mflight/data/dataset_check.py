"""Whether a detector can be trained on a set of files and scored on another. No torch: it takes seconds."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mflight.data.annotation_format import ImageEntry
from mflight.data.annotations import open_annotation_file, read_classes
from mflight.data.categories import Categories, name_conflict
from mflight.data.files import DATASET_KEYS, require_dataset
from mflight.data.image_check import check_images, find_images
from mflight.data.left_out import MAX_SHARE, LeftOut
from mflight.data.pictures import read_picture

_NUM_SAMPLED = 16


def check_dataset(
    *,
    train_annotations: Path,
    train_images: Path,
    val_annotations: Path,
    val_images: Path,
    cache_dir: Path | None = None,
    num_classes: int | None = None,
    max_left_out: float = MAX_SHARE,
) -> None:
    """Raise unless both splits can be read, name the same classes, and are there in the main.

    Every image file is looked for, and a few are decoded; a damaged one costs no run, a tenth of them does. A
    file or folder that is not there is a FileNotFoundError.

    Args:
        train_annotations: LVIS v1 or COCO JSON of the images trained on.
        train_images: folder of these images.
        val_annotations: JSON of the images scored.
        val_images: folder of these images.
        cache_dir: folder of the annotations' flat arrays.
        num_classes: how many both must list; ``None``: any number.
        max_left_out: share of the instances from which on leaving out is refused; above 1 never.

    Raises:
        ValueError: with what is wrong in a file.
    """
    places = (train_annotations, train_images, val_annotations, val_images)
    require_dataset(dict(zip(DATASET_KEYS, places, strict=True)))
    train, val = (open_annotation_file(path, cache_dir) for path in (train_annotations, val_annotations))
    classes = read_classes(train)
    check_categories(classes, read_classes(val), num_classes, train_annotations, val_annotations)
    for arrays, path, root in ((train, train_annotations, train_images), (val, val_annotations, val_images)):
        names = [category.name for category in classes]
        if fault := LeftOut.of_arrays(arrays).fault(names, max_left_out):
            raise ValueError(f"{path}: {fault}")
        _check_images(arrays, Path(root), path)


def check_categories(
    train: Categories, val: Categories, num_classes: int | None, train_file: Path, val_file: Path
) -> None:
    """Raise unless both files have the same classes, for labels are places in their order.

    Args:
        train: classes trained on.
        val: classes scored.
        num_classes: how many there must be, or ``None``.
        train_file: where ``train`` stands.
        val_file: where ``val`` stands.

    Raises:
        ValueError: if their number is another, an id is in one of the files only, or has another name there.
    """
    if num_classes not in (None, len(train)):
        raise ValueError(f"data.num_classes must be the {len(train)} of {train_file}, got {num_classes}")
    both = f"data.train_annotations={train_file} and data.val_annotations={val_file} must"
    if odd := sorted(train.names.keys() ^ val.names.keys()):
        raise ValueError(f"{both} list the same category ids, {odd[:10]} are in one of them only")
    if conflict := name_conflict(train.names, val.names):
        raise ValueError(f"{both} name the same classes: {conflict}")


def _check_images(arrays: Mapping[str, np.ndarray], root: Path, annotation_file: Path) -> None:
    images = _entries(arrays)
    findings = check_images(root, images)
    if findings.counts:
        raise ValueError(f"{annotation_file}: {'; '.join(findings.lines())}")
    sample = images[:: max(1, len(images) // _NUM_SAMPLED)]
    faults = []
    for image, path in find_images(root, sample):
        try:
            read_picture(path, (image.height, image.width))
        except ValueError as error:
            faults.append(f"{error}")
    if len(faults) > 1 and len(faults) >= MAX_SHARE * len(sample):
        raise ValueError(
            f"{len(faults)} of {len(sample)} images looked at are no use, the first: {faults[0]}"
        )


def _entries(arrays: Mapping[str, np.ndarray]) -> list[ImageEntry]:
    """Return id, size and paths of all images."""
    text, ends = arrays["paths"].tobytes(), arrays["path_offsets"].tolist()
    entries = []
    for index, (image_id, (height, width)) in enumerate(
        zip(arrays["image_ids"].tolist(), arrays["image_sizes_hw"].tolist(), strict=True)
    ):
        name, _, url = text[ends[index] : ends[index + 1]].decode().partition("\n")
        entries.append(ImageEntry(image_id, height, width, file_name=name, coco_url=url or None))
    return entries
