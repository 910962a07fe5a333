"""From a pool to a dataset in LVIS v1 or YOLO format, alone or behind the entries of an annotation file."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mflight.functional.masks import rle_decode
from mflight.functional.polygons import mask_to_polygons
from mflight.synthesis import yolo_files
from mflight.synthesis.annotation_file import AddedEntries, AnnotationFile
from mflight.synthesis.pool.index import INDEX_NAME, PoolError, holds_pool
from mflight.synthesis.pool.packing import PoolSample, suffix_of
from mflight.synthesis.pool.reader import PoolReader

logger = logging.getLogger(__name__)

ANNOTATION_FILE = "annotations.json"
IMAGE_FOLDER = "synthetic"
COCO_HOST = "http://images.cocodataset.org/"
_MADE = {ANNOTATION_FILE, IMAGE_FOLDER}
_MADE_FOR_YOLO = {yolo_files.DATA_FILE, yolo_files.IMAGE_FOLDER, yolo_files.LABEL_FOLDER, "labels.cache"}


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """What an export wrote, and what it left out.

    Attributes:
        images: synthetic images.
        instances: synthetic instances.
        merged_images: images of the annotation file that they follow.
        unreadable: samples of the pool that are torn.
    """

    images: int
    instances: int
    merged_images: int
    unreadable: int


def export_pool(
    pool_dir: str | Path,
    output: str | Path,
    *,
    file_format: Literal["lvis", "yolo"] = "lvis",
    merge: str | Path | None = None,
    segmentation: Literal["rle", "polygon"] = "rle",
    update_frequency: bool = False,
    overwrite: bool = False,
) -> ExportCounts:
    """Write ``annotations.json`` and the images in ``synthetic/``, or YOLO's files; all at once or not.

    Images are the pool's own files, byte by byte. Image and annotation ids follow the highest of ``merge``,
    whose entries are taken over as they stand. ``image_count`` and ``instance_count`` of the classes grow by
    what is added. Nobody has looked for other classes in a synthetic image, so ``neg_category_ids`` is empty;
    and nobody has counted the objects of its own classes, so all that it was asked for, also those whose
    region was rejected, are in ``not_exhaustive_category_ids``. A file to merge that is not in this format,
    or lacks a class of the pool, is a ValueError. So is an ``output`` that holds the pool or that file, or
    that is no earlier export; one that exists is a FileExistsError unless ``overwrite`` is set.

    Args:
        pool_dir: the pool folder.
        output: the folder to make.
        file_format: ``"lvis"``, or ``"yolo"`` for ultralytics' segmentation: ``data.yaml``, ``images/`` and
            ``labels/``, see ``mflight.synthesis.yolo_files``.
        merge: annotations in LVIS v1 or COCO instance format that the synthetic ones are added to. YOLO's
            files only take the numbers of the classes from it: their places in the order of the ids.
        segmentation: ``"rle"`` keeps the masks to the pixel; ``"polygon"`` is read by Detectron2 too, and
            fills the holes of masks.
        update_frequency: let the ``frequency`` of the merged classes follow the new ``image_count`` by LVIS's
            rule. Else a rare class stays one: AP is compared on the groups of the real images.
        overwrite: replace ``output`` if it exists.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: if there is no pool, or no file to merge.
    """
    pool_dir, output = Path(pool_dir), Path(output).absolute()
    if not holds_pool(pool_dir):
        raise FileNotFoundError(f"{pool_dir} is no pool: it has no {INDEX_NAME}")
    if merge is not None and not Path(merge).is_file():
        raise FileNotFoundError(f"the file to merge must be an annotation file, found no file at {merge}")
    _check_replaceable(output, [pool_dir, *([] if merge is None else [Path(merge)])], overwrite)
    base = AnnotationFile.read(merge)
    is_yolo = file_format == "yolo"
    with _appearing(output) as folder:
        images = folder / (yolo_files.IMAGE_FOLDER if is_yolo else IMAGE_FOLDER)
        images.mkdir()
        export = _Export(PoolReader(pool_dir), base, images, segmentation, must_know=merge is not None)
        export.add_all()
        if is_yolo:
            yolo_files.write_labels(folder, export.added, base.categories)
        else:
            with (folder / ANNOTATION_FILE).open("wb") as file:
                base.write(file, export.added, update_frequency=update_frequency)
                file.flush()
                os.fsync(file.fileno())
    added = export.added
    return ExportCounts(len(added.images), len(added.annotations), len(base.images), export.num_unreadable)


def _check_replaceable(output: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Raise unless ``output`` is free, or an earlier export that may go and holds nothing that is read."""
    for source in sources:
        if source.resolve().is_relative_to(output.resolve()):
            raise ValueError(f"the output must not hold what is read, but {source} lies in {output}")
    if not output.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists already; --overwrite replaces it")
    if not output.is_dir():
        raise ValueError(f"only an earlier export can be replaced, {output} is a file")
    foreign = sorted({entry.name for entry in output.iterdir()} - _MADE - _MADE_FOR_YOLO)
    if foreign:
        raise ValueError(f"only an earlier export can be replaced, {output} also holds {foreign[0]!r}")


class _Export:
    """Collects the entries of a pool's samples and writes their images."""

    def __init__(
        self, reader: PoolReader, base: AnnotationFile, images: Path, segmentation: str, must_know: bool
    ):
        self._reader, self._images, self._segmentation = reader, images, segmentation
        self._known = {entry["id"]: entry["name"] for entry in base.categories} if must_know else None
        self._image_id, self._annotation_id = base.max_image_id, base.max_annotation_id
        self.added = AddedEntries()
        self.num_unreadable = 0

    def add_all(self) -> None:
        """Take over every sample that can be read, in order of the requests."""
        refs = self._reader.poll()
        self.num_unreadable = len(self._reader.ids("kept")) - len(refs)  # in torn shards
        for ref in refs:
            try:
                sample, picture = self._reader.read(ref), self._reader.read_encoded(ref).picture
            except PoolError as error:
                logger.warning("left out: %s", error)
                self.num_unreadable += 1
                continue
            self._add(sample, f"{sample.sample_id}{suffix_of(picture)}", picture)

    def _add(self, sample: PoolSample, name: str, picture: bytes) -> None:
        asked_for = sorted({region["category_id"] for region in sample.regions})
        for entry in categories_of(sample):
            self._check_known(entry, sample.sample_id)
            self.added.categories.setdefault(entry["id"], entry)
        (self._images / name).write_bytes(picture)
        self._image_id += 1
        height, width = sample.image.shape[:2]
        place = f"{self._images.name}/{name}"
        self.added.images.append(
            {
                "id": self._image_id,
                "height": height,
                "width": width,
                "file_name": place,
                "coco_url": COCO_HOST + place,  # LVIS's readers cut the host off, or take the last two parts
                "neg_category_ids": [],
                "not_exhaustive_category_ids": asked_for,
                "synthetic": True,
            }
        )
        for annotation in sample.annotations:
            self._annotation_id += 1
            self.added.annotations.append(self._entry(annotation))

    def _entry(self, annotation: dict[str, Any]) -> dict[str, Any]:
        outline, area = annotation["segmentation"], annotation["area"]
        if self._segmentation == "polygon":
            outline = mask_to_polygons(rle_decode(outline))
            area = _filled_area(outline)
        return {
            "id": self._annotation_id,
            "image_id": self._image_id,
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "area": area,
            "segmentation": outline,
            "iscrowd": 0,
        }

    def _check_known(self, entry: dict[str, Any], sample_id: str) -> None:
        if self._known is None:
            return
        known = self._known.get(entry["id"])
        if known is None or (entry["name"] and known != entry["name"]):
            raise ValueError(
                f"sample {sample_id} has category {entry['id']} {entry['name']!r}, "
                f"which is {known!r} in the file to merge: the pool was drawn for another dataset"
            )


def categories_of(sample: PoolSample) -> list[dict[str, Any]]:
    """Return the classes that a sample was asked for, as entries of an LVIS file, without their counts.

    Args:
        sample: its provenance tells names and definitions; without it a class is named by its id.

    Returns:
        One entry for each region, in their order.
    """
    request = sample.provenance.get("request", {})
    ids = [region["category_id"] for region in sample.regions]
    names: Sequence[str] = request.get("names") or [f"category_{category_id}" for category_id in ids]
    prompts: Sequence[dict[str, Any]] = request.get("prompts") or [{}] * len(ids)
    entries = []
    for category_id, name, prompt in zip(ids, names, prompts, strict=True):
        span = prompt.get("definition_span")
        definition = prompt["text"][slice(*span)] if span else ""
        entries.append({"id": category_id, "name": name, "def": definition, "synonyms": [name], "synset": ""})
    return entries


def _filled_area(polygons: Iterable[Sequence[int]]) -> float:
    """Return the area in px² of polygons that do not overlap, by the shoelace formula."""
    area = 0.0
    for polygon in polygons:
        x, y = np.array(polygon, dtype=float).reshape(-1, 2).T
        area += abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    return area


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` that takes its name at the end, or goes when there is an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    retired = draft.with_name(draft.name + "-old")
    try:
        draft.chmod(0o755)
        yield draft
        if folder.exists():
            folder.rename(retired)
        draft.rename(folder)
    except BaseException:
        if retired.exists() and not folder.exists():
            retired.rename(folder)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
