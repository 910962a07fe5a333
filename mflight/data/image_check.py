"""Check the image files of a dataset: which are missing, which cannot be read or are of another size."""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from mflight.data.annotation_format import ImageEntry, image_paths
from mflight.data.findings import Findings
from mflight.data.pictures import read_picture

DAMAGED = "image files cannot be trained on"
"""The rule of ``check_images`` that a file breaks which is there and is no use."""


def check_images(
    root: Path,
    images: Sequence[ImageEntry],
    *,
    num_images: int | None = None,
    num_decoded: int | None = 0,
    num_threads: int = 4,
    seed: int = 0,
) -> Findings:
    """Look for the files of images, and decode some as training does.

    Folders are listed once, so that all of LVIS's files are looked for in a second.

    Args:
        root: folder of the images.
        images: as annotated.
        num_images: how many of them, drawn by the seed, are looked for; ``None``: all.
        num_decoded: how many of those that are there are decoded to the last pixel; ``None``: all.
        num_threads: that decode.
        seed: of the draws.

    Returns:
        What is missing, damaged, or the file of two images.
    """
    draws, findings = random.Random(seed), Findings()
    folder = _Folder(root)
    found: list[tuple[ImageEntry, Path]] = []
    owners: dict[Path, int] = {}
    for image in _sample(images, num_images, draws):
        path = folder.find(image_paths(image))
        if path is None:
            paths = image_paths(image) or ["no name"]
            findings.add(_missing(root, paths[0]), f"{' or '.join(paths)} (image {image.id})")
        elif owners.setdefault(path, image.id) != image.id:
            findings.add("image files belong to two ids", f"{path} to {owners[path]} and {image.id}")
        else:
            found.append((image, path))
    chosen = _sample(found, num_decoded, draws)
    with ThreadPoolExecutor(num_threads) as pool:
        for fault in filter(None, pool.map(_decode, chosen)):
            findings.add(DAMAGED, fault)
    return findings


def likeliest_files(root: Path, images: Sequence[ImageEntry]) -> set[Path]:
    """Return where the files of images should lie, whether they are there or not."""
    return {root / path for image in images for path in image_paths(image)[:1]}


class _Folder:
    """Tells where an image file lies, as ``LVISDataset.find_image`` does, by listing each folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, set[str]] = {}

    def find(self, paths: Sequence[str]) -> Path | None:
        for path in (*paths, *(PurePosixPath(path).name for path in paths)):
            folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
            if folder not in self._names:
                place = self._root / folder
                self._names[folder] = set(os.listdir(place)) if place.is_dir() else set()
            if name in self._names[folder]:
                return self._root / folder / name
        return None


def _missing(root: Path, path: str) -> str:
    folder = root / PurePosixPath(path).parent
    return f"image files are missing in {folder}" + (
        "" if folder.is_dir() else ", a folder that is not there"
    )


def _decode(item: tuple[ImageEntry, Path]) -> str:
    image, path = item
    try:
        read_picture(path, (image.height, image.width))
    except ValueError as error:
        return str(error).removeprefix("image file ")
    return ""


def _sample(items: Sequence, number: int | None, draws: random.Random) -> Sequence:
    return items if number is None or number >= len(items) else draws.sample(items, number)
