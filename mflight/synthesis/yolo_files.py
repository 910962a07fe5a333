"""Labels as ultralytics' segmentation reads them: one text file an image, one outline an instance."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mflight.functional.masks import rle_decode
from mflight.functional.polygons import mask_to_polygons
from mflight.synthesis.annotation_file import AddedEntries

DATA_FILE = "data.yaml"
IMAGE_FOLDER = "images"
LABEL_FOLDER = "labels"


def write_labels(folder: Path, added: AddedEntries, categories: Sequence[dict[str, Any]]) -> None:
    """Write ``data.yaml`` and ``labels/``; the images lie in ``images/`` already.

    A line is ``class x y x y ...`` with coordinates as shares of width and height, from 0 to 1. Parts and
    holes of an instance hang together by bridges without width: by the even-odd rule the outline is the mask.

    Args:
        folder: of the dataset.
        added: the images and their instances, run-length coded.
        categories: number the classes, from 0 in the order of their ids; if empty, the added ones do.
    """
    entries = sorted(categories or added.categories.values(), key=lambda entry: entry["id"])
    number_of = {entry["id"]: number for number, entry in enumerate(entries)}
    lines: dict[int, list[str]] = {image["id"]: [] for image in added.images}
    for annotation in added.annotations:
        points = outline_of(rle_decode(annotation["segmentation"]))
        words = [f"{value:.6g}" for value in points.ravel()]
        lines[annotation["image_id"]].append(" ".join([str(number_of[annotation["category_id"]]), *words]))
    (folder / LABEL_FOLDER).mkdir()
    for image in added.images:
        name = Path(image["file_name"]).with_suffix(".txt").name
        (folder / LABEL_FOLDER / name).write_text("".join(f"{line}\n" for line in lines[image["id"]]))
    names = "".join(f"  {number}: {json.dumps(entry['name'])}\n" for number, entry in enumerate(entries))
    (folder / DATA_FILE).write_text(
        f"# Synthetic images drawn by mflight. Validate on real ones: name their folder as val.\n"
        f"train: {IMAGE_FOLDER}\nval: {IMAGE_FOLDER}\nnames:\n{names}"
    )


def outline_of(mask: np.ndarray) -> np.ndarray:
    """Return the one closed outline of a mask, its parts and holes joined where they are nearest.

    Args:
        mask: ``bool`` or ``uint8[H, W]``, not empty.

    Returns:
        ``float64[N, 2]``: ``x, y`` as shares of width and height.
    """
    first, *others = (np.reshape(polygon, (-1, 2)) for polygon in mask_to_polygons(mask, with_holes=True))
    outline = first
    for other in others:
        gaps = ((outline[:, None] - other[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(gaps.argmin(), gaps.shape)
        detour = np.roll(other, -there, axis=0)
        outline = np.concatenate([outline[: here + 1], detour, detour[:1], outline[here:]])
    return outline / mask.shape[::-1]
