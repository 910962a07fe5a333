"""MiniLVIS as a dataset on disk: images and LVIS v1 annotation files, drawn at first use."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mflight.functional.masks import rle_encode
from mflight.minilvis.captions import spoken
from mflight.minilvis.scene import Placement, Scene, draw_placement, draw_scene
from mflight.minilvis.species import SPECIES, Species
from mflight.minilvis.textures import BACKGROUNDS

FORMAT_VERSION = 1
_STAMP = "minilvis.json"
IMAGE_PX = 128
_RADIUS_RANGE_PX = (13.0, 27.0)
_MAX_COVERED_RATIO = 0.3
_MIN_AREA_PX = 60
_NUM_NEGATIVES = 14
_NOT_EXHAUSTIVE_RATIO = 0.05
_RARE_BREEDS_IN_TRAIN = 2
_LETTER = {"rare": "r", "common": "c", "frequent": "f"}


@dataclass(frozen=True, slots=True)
class MiniLVISSize:
    """How much of the world is drawn.

    Attributes:
        train_images: by frequency, the range (both ends included) of training images that show a class.
        val_instances: instances of each class in the validation set, at least.
    """

    train_images: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"rare": (1, 3), "common": (15, 40), "frequent": (110, 160)}
    )
    val_instances: int = 18


def build_minilvis(folder: str | Path, *, seed: int = 0, size: MiniLVISSize | None = None) -> Path:
    """Draw the dataset into ``folder`` unless it is there; the same seed gives the same bytes.

    Args:
        folder: receives ``train.json``, ``val.json`` and the PNG images in ``train/`` and ``val/``; it
            appears whole or not at all.
        seed: of the world's draws.
        size: how much is drawn.

    Returns:
        ``folder``.

    Raises:
        ValueError: if the folder holds a MiniLVIS of another seed, size or format version.
        OSError: if it holds other files, or cannot be written.
    """
    folder, size = Path(folder), size or MiniLVISSize()
    stamp = {"format_version": FORMAT_VERSION, "seed": seed, "size": _plain(size)}
    found = _read_stamp(folder)
    if found is not None:
        if found != stamp:
            raise ValueError(
                f"{folder} must hold MiniLVIS {stamp}, it holds {found}: delete it or name another folder"
            )
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draws = np.random.default_rng(seed)
        _write_split(partial, "train", _draw_train(size, draws), draws, first_image_id=1)
        _write_split(partial, "val", _draw_val(size, draws), draws, first_image_id=100_001)
        (partial / _STAMP).write_text(json.dumps(stamp))
        partial.chmod(0o755)
        try:
            os.replace(partial, folder)
        except OSError:
            if _read_stamp(folder) != stamp:  # else another process that drew the same world was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _read_stamp(folder: Path) -> dict | None:
    file = folder / _STAMP
    return json.loads(file.read_text()) if file.exists() else None


def digest(folder: Path) -> str:
    """Return the SHA-256 of all file names and bytes below ``folder``."""
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            total.update(str(file.relative_to(folder)).encode())
            total.update(file.read_bytes())
    return total.hexdigest()


def _plain(size: MiniLVISSize) -> dict:
    return json.loads(json.dumps({"train_images": size.train_images, "val_instances": size.val_instances}))


def _draw_train(size: MiniLVISSize, draws: np.random.Generator) -> list[Scene]:
    """Fill images from the classes that still lack some, the more often the more they lack."""
    lacking = {
        species.category_id: int(draws.integers(low, high + 1))
        for species in SPECIES
        for low, high in [size.train_images[species.frequency]]
    }
    scenes = []
    while any(lacking.values()):
        ids = np.array([category_id for category_id, left in lacking.items() if left])
        weights = np.array([lacking[category_id] for category_id in ids], dtype=float)
        count = min(int(draws.integers(1, 6)), len(ids))
        chosen = draws.choice(ids, size=count, replace=False, p=weights / weights.sum())
        objects = [SPECIES[category_id - 1] for category_id in chosen]
        if draws.random() < 0.25:  # a class may stand in an image more than once
            objects.append(objects[0])
        scene = _draw_crowd(objects, draws, is_train=True)
        scenes.append(scene)
        for category_id in {placement.species.category_id for placement in scene.placements}:
            lacking[category_id] = max(lacking[category_id] - 1, 0)
    return scenes


def _draw_val(size: MiniLVISSize, draws: np.random.Generator) -> list[Scene]:
    """Deal out every class ``val_instances`` times, breeds in turn, until each has been seen that often."""
    lacking = {species.category_id: size.val_instances for species in SPECIES}
    scenes = []
    while any(lacking.values()):
        left = [category_id for category_id, number in lacking.items() if number]
        draws.shuffle(left)
        scene = _draw_crowd(
            [SPECIES[i - 1] for i in left[: int(draws.integers(1, 6))]], draws, is_train=False
        )
        scenes.append(scene)
        for placement in scene.placements:
            category_id = placement.species.category_id
            lacking[category_id] = max(lacking[category_id] - 1, 0)
    return scenes


def _draw_crowd(objects: list[Species], draws: np.random.Generator, *, is_train: bool) -> Scene:
    """Place the objects so that none is covered too much; one that finds no place is left out."""
    placed: list[Placement] = []
    for species in objects:
        only = _RARE_BREEDS_IN_TRAIN if is_train and species.frequency == "rare" else len(species.breeds)
        for _ in range(30):
            breed = int(draws.integers(only))
            trial = draw_placement(species, (IMAGE_PX, IMAGE_PX), _RADIUS_RANGE_PX, draws, breed_index=breed)
            if all(_keeps_clear(trial, other) for other in placed):
                placed.append(trial)
                break
    background = list(BACKGROUNDS)[draws.integers(len(BACKGROUNDS))]
    scene = draw_scene(placed, background, (IMAGE_PX, IMAGE_PX), draws)
    areas = zip(scene.masks, scene.whole_masks, strict=True)
    if all(seen.sum() >= max((1 - _MAX_COVERED_RATIO) * whole.sum(), _MIN_AREA_PX) for seen, whole in areas):
        return scene
    return _draw_crowd(objects, draws, is_train=is_train)


def _keeps_clear(first: Placement, second: Placement) -> bool:
    gap = np.hypot(first.center_xy[0] - second.center_xy[0], first.center_xy[1] - second.center_xy[1])
    return gap > 0.72 * (first.radius_px + second.radius_px)


def _write_split(
    folder: Path, split: str, scenes: list[Scene], draws: np.random.Generator, *, first_image_id: int
) -> None:
    (folder / split).mkdir()
    images, annotations = [], []
    for number, scene in enumerate(scenes):
        image_id = first_image_id + number
        name = f"{image_id:012d}.png"
        Image.fromarray(scene.image).save(folder / split / name, compress_level=1)
        left_out = _left_out(scene, draws) if split == "train" else None
        for index in range(len(scene.placements)):
            if index != left_out:
                annotations.append(_annotation(scene, index, len(annotations) + 1, image_id))
        present = {placement.species.category_id for placement in scene.placements}
        absent = [species.category_id for species in SPECIES if species.category_id not in present]
        negatives = sorted(int(i) for i in draws.choice(absent, size=_NUM_NEGATIVES, replace=False))
        not_exhaustive = [] if left_out is None else [scene.placements[left_out].species.category_id]
        images.append(
            {
                "id": image_id,
                "file_name": f"{split}/{name}",
                "coco_url": f"{split}/{name}",
                "width": IMAGE_PX,
                "height": IMAGE_PX,
                "neg_category_ids": negatives,
                "not_exhaustive_category_ids": not_exhaustive,
            }
        )
    document = {
        "info": {"description": "MiniLVIS: a drawn long-tailed world in LVIS v1 format", "version": "1"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": _categories(annotations),
    }
    (folder / f"{split}.json").write_text(json.dumps(document))


def _left_out(scene: Scene, draws: np.random.Generator) -> int | None:
    """Now and then leave one of several instances of a class unlabelled, as not-exhaustive images do."""
    ids = [placement.species.category_id for placement in scene.placements]
    doubled = [index for index, category_id in enumerate(ids) if ids.count(category_id) > 1]
    if doubled and draws.random() < 4 * _NOT_EXHAUSTIVE_RATIO:  # a quarter of the images has such a class
        return doubled[-1]
    return None


def _annotation(scene: Scene, index: int, annotation_id: int, image_id: int) -> dict:
    mask, placement = scene.masks[index], scene.placements[index]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = columns[0], rows[0]
    is_whole = mask.sum() == scene.whole_masks[index].sum() and _lies_inside(placement)
    polygon = [round(float(value), 2) for value in placement.polygon.ravel()]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": placement.species.category_id,
        "segmentation": [polygon] if is_whole else rle_encode(mask),
        "area": float(mask.sum()),
        "bbox": [float(left), float(top), float(columns[-1] - left + 1), float(rows[-1] - top + 1)],
    }


def _lies_inside(placement: Placement) -> bool:
    return bool((placement.polygon >= 0).all() and (placement.polygon <= IMAGE_PX).all())


def _categories(annotations: list[dict]) -> list[dict]:
    images = {species.category_id: set() for species in SPECIES}
    instances = dict.fromkeys(images, 0)
    for annotation in annotations:
        images[annotation["category_id"]].add(annotation["image_id"])
        instances[annotation["category_id"]] += 1
    return [
        {
            "id": species.category_id,
            "name": species.name,
            "def": species.definition,
            "synonyms": [species.name],
            "synset": f"{spoken(species).split(' (')[0].replace(' ', '_')}.n.01",
            "frequency": _LETTER[species.frequency],
            "image_count": len(images[species.category_id]),
            "instance_count": instances[species.category_id],
        }
        for species in SPECIES
    ]
