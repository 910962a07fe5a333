"""Check the image files of a dataset: which are missing, which cannot be read or are of another size."""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from PIL import Image

from mflight.data.annotation_format import ImageEntry, image_path
from mflight.data.findings import Findings


def check_images(
    root: Path,
    images: Sequence[ImageEntry],
    *,
    num_images: int | None = None,
    num_decoded: int | None = 0,
    num_threads: int = 4,
    seed: int = 0,
) -> Findings:
    """Look for the files of images, and decode some.

    Folders are listed once, so that all of LVIS's files are looked for in a second.

    Args:
        root: folder of the images.
        images: as annotated.
        num_images: how many of them, drawn by the seed, are looked for; ``None``: all.
        num_decoded: how many of those that are there are decoded to the last pixel; ``None``: all.
        num_threads: that decode.
        seed: of the draws.

    Returns:
        What is missing or damaged.
    """
    draws, findings = random.Random(seed), Findings()
    folder = _Folder(root)
    found = []
    for image in _sample(images, num_images, draws):
        path = folder.find(image_path(image))
        if path is None:
            findings.add(_missing(root, image_path(image)), f"{image_path(image)} (image {image.id})")
        else:
            found.append((image, path))
    chosen = _sample(found, num_decoded, draws)
    with ThreadPoolExecutor(num_threads) as pool:
        for rule, example in filter(None, pool.map(_decode, chosen)):
            findings.add(rule, example)
    return findings


class _Folder:
    """Tells where an image file lies, as ``LVISDataset.find_image`` does, by listing each folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, set[str]] = {}

    def find(self, path: str) -> Path | None:
        name = PurePosixPath(path).name
        for folder in (str(PurePosixPath(path).parent), "."):
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


def _decode(item: tuple[ImageEntry, Path]) -> tuple[str, str] | None:
    image, path = item
    try:
        with Image.open(path) as opened:
            opened.load()
            height, width = opened.height, opened.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return "image files cannot be decoded", f"{path} ({path.stat().st_size:,} bytes: {error})"
    if (height, width) != (image.height, image.width):
        sizes = f"{[height, width]}, annotated {[image.height, image.width]}"
        return "image files are of another size than annotated", f"{path} ({sizes})"
    return None


def _sample(items: Sequence, number: int | None, draws: random.Random) -> Sequence:
    return items if number is None or number >= len(items) else draws.sample(items, number)
