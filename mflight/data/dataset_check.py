"""Whether a detector can be trained on a set of files and scored on another. No torch: it takes seconds."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mflight.data.annotation_format import ImageEntry
from mflight.data.annotations import open_annotation_file, read_classes
from mflight.data.class_names import classes_apart
from mflight.data.files import DATASET_KEYS, require_dataset
from mflight.data.image_check import DAMAGED, check_images, likeliest_files
from mflight.data.left_out import MAX_SHARE, LeftOut

_NUM_SAMPLED = 32
_log = logging.getLogger(__name__)


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
    if num_classes not in (None, len(classes)):
        raise ValueError(
            f"data.num_classes must be the {len(classes)} of {train_annotations}, got {num_classes}"
        )
    if apart := classes_apart(classes.names, read_classes(val).names):
        both = f"data.train_annotations={train_annotations} and data.val_annotations={val_annotations}"
        raise ValueError(f"{both} must {apart}")
    files: list[set[Path]] = []
    for arrays, path, root in ((train, train_annotations, train_images), (val, val_annotations, val_images)):
        if fault := LeftOut.of_arrays(arrays).fault([one.name for one in classes], max_left_out):
            raise ValueError(f"{path}: {fault}")
        images = _entries(arrays)
        _check_images(images, Path(root), path)
        files.append(likeliest_files(Path(root), images))
    if shared := len(files[0] & files[1]):
        _log.warning(
            "%d of the %d images scored are trained on too, so their AP says little", shared, len(files[1])
        )


def _check_images(images: list[ImageEntry], root: Path, annotation_file: Path) -> None:
    findings = check_images(root, images, num_decoded=_NUM_SAMPLED)
    num_damaged, num_looked_at = findings.counts.pop(DAMAGED, 0), min(len(images), _NUM_SAMPLED)
    if findings.counts:
        raise ValueError(f"{annotation_file}: {'; '.join(findings.lines())}")
    if num_damaged > 1 and num_damaged >= MAX_SHARE * num_looked_at:
        told = f"{num_damaged} of {num_looked_at} images looked at are no use, the first"
        raise ValueError(f"{annotation_file}: {told}: {findings.examples[DAMAGED][0]}")


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
