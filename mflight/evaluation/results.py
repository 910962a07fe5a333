"""A results list in LVIS format (image_id, category_id, score, bbox, segmentation): read and scored.

It is read in pieces, so that neither a second copy of the predictions nor an outline that no overlap asks for
is held.
"""

import os
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from mflight.data.annotation_format import polygon_fault, tell_decode_error
from mflight.data.class_names import name_conflict
from mflight.evaluation.detections import Detections, concatenate
from mflight.evaluation.ground_truth import GroundTruth, cells_of, is_member
from mflight.evaluation.lvis_ap import LVISEvaluator
from mflight.evaluation.overlap import Rle, outline_to_rle
from mflight.functional.run_lengths import find_code_faults, measure_codes

IOU_TYPES = ("bbox", "segm")
_KEY_OF_IOU_TYPE = {"bbox": "bbox", "segm": "segmentation"}
_PIECE = 20_000
_MAX_WORKERS = 8
_WORTH_WORKERS = 20_000  # masks; below, starting processes takes longer than the work


class _Entry(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] | UnsetType = UNSET
    segmentation: Rle | list[Any] | UnsetType = UNSET
    category_name: str | UnsetType = UNSET


_decoder = msgspec.json.Decoder(_Entry, strict=False)
_piece_decoder = msgspec.json.Decoder(list[_Entry], strict=False)


def score_results(
    *,
    ground_truth: GroundTruth | Mapping[str, Any] | str | Path,
    results: str | Path | Sequence[dict[str, Any]],
    max_detections: int = 300,
    num_workers: int | None = None,
    iou_types: Sequence[str] | None = None,
) -> LVISEvaluator:
    """Score a results file or list in LVIS format: its boxes, its masks, or both.

    Args:
        ground_truth: LVIS annotations.
        results: path of the results, or the list itself, which stays as it is.
        max_detections: how many detections of an image count.
        num_workers: processes that compute mask overlaps, 0 for none beside this one. None: one per core, at
            most 8, where there are enough masks to be worth starting them.
        iou_types: what is scored, "bbox", "segm" or both; ``None``: whatever the results hold.

    Returns:
        The evaluator that has taken in everything: ask it for ``compute()`` and ``per_class()``.
    """
    ground_truth = GroundTruth.load(ground_truth)
    detections = read_results(results, ground_truth, iou_types)
    held = {"bbox": detections.boxes_xywh, "segm": detections.segmentations}
    iou_types = tuple(iou_type for iou_type, values in held.items() if values is not None)
    evaluator = LVISEvaluator(ground_truth=ground_truth, iou_types=iou_types, max_detections=max_detections)
    if num_workers is None:
        num_masks = sum(outline is not None for outline in detections.segmentations or ())
        num_workers = min(_num_cores(), _MAX_WORKERS) if num_masks > _WORTH_WORKERS else 0
    evaluator.update_all(detections=detections, num_workers=num_workers)
    return evaluator


def read_results(
    source: str | Path | Sequence[dict[str, Any]],
    ground_truth: GroundTruth,
    iou_types: Sequence[str] | None = None,
) -> Detections:
    """Read and check a results file, or a list of dictionaries, which stays as it is.

    Args:
        source: path of a JSON file, or its content.
        ground_truth: the annotations that the results answer.
        iou_types: what is scored, "bbox", "segm" or both; the box of a mask stands for one that is not given.
            ``None``: whatever the first entry holds.

    Returns:
        All detections in file order, with boxes, masks or both.

    Raises:
        ValueError: if the content is no list, or if an entry lacks a key, holds a value of another type, has
            neither box nor mask, not the same of them as the first entry, an unknown image or category id,
            another name of its category than the ground truth, a score that is not finite, or an outline that
            is no mask of its image; or if masks are asked for that are not there.
    """
    unknown = [each for each in iou_types or () if each not in IOU_TYPES]
    if unknown or (iou_types is not None and not iou_types):
        raise ValueError(f"iou_types must be some of {list(IOU_TYPES)}, got {list(iou_types)}")
    if isinstance(source, str | Path):
        place = str(source)
        entries = _open_results(Path(source))
    else:
        place = "results"
        if not isinstance(source, list | tuple):
            raise ValueError(f"results must be a list of dictionaries, got a {type(source).__name__}")
        entries = source
    if not entries:
        return _no_detections()
    held: tuple[str, ...] = ()
    parts = []
    for start in range(0, len(entries), _PIECE):
        piece = _parse_piece(entries[start : start + _PIECE], start, place)
        held = held or _iou_types_of(piece[0], f"{place}: entry 0")
        if "segm" in (iou_types or ()) and "segm" not in held:
            raise ValueError(
                f"iou_types={list(iou_types)} asks for masks, the entries of {place} hold boxes only"
            )
        found = _to_detections(piece, held, ground_truth, start, place)
        parts.append(_restrict(found, iou_types or held))
    return concatenate(parts)


def _restrict(detections: Detections, iou_types: Sequence[str]) -> Detections:
    """Keep what is asked for; read_results has checked that it is there, or worked it out."""
    return replace(
        detections,
        boxes_xywh=detections.boxes_xywh if "bbox" in iou_types else None,
        segmentations=detections.segmentations if "segm" in iou_types else None,
    )


def _open_results(path: Path) -> list[msgspec.Raw]:
    if not path.is_file():
        raise FileNotFoundError(
            f"predictions must be a JSON file in LVIS's results format, found no file at {path}"
        )
    data = path.read_bytes().removeprefix(BOM_UTF8).lstrip()
    if not data.startswith(b"["):
        shown = data[:20].decode(errors="replace")
        raise ValueError(f"{path} must hold a list of results, it starts with {shown!r}")
    try:
        return msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {tell_decode_error(error, data)}") from None


def _parse_piece(piece: Sequence[Any], start: int, place: str) -> list[_Entry]:
    is_json = isinstance(piece[0], msgspec.Raw)
    try:
        if is_json:
            return _piece_decoder.decode(b"[" + b",".join(piece) + b"]")
        return msgspec.convert(piece, list[_Entry], strict=False)
    except msgspec.ValidationError:
        for index, raw in enumerate(piece, start=start):
            try:
                _decoder.decode(raw) if is_json else msgspec.convert(raw, _Entry, strict=False)
            except msgspec.ValidationError as error:
                content = msgspec.json.decode(raw) if is_json else raw
                held = f"the keys {sorted(content)}" if isinstance(content, dict) else repr(content)
                raise ValueError(
                    f"{place}: entry {index} is no LVIS result: {error}; it holds {held}"
                ) from None
        raise


def _iou_types_of(entry: _Entry, place: str) -> tuple[str, ...]:
    held = tuple(key for key in IOU_TYPES if getattr(entry, _KEY_OF_IOU_TYPE[key]) is not UNSET)
    if not held:
        raise ValueError(f'{place} must hold "bbox", "segmentation" or both, it holds neither')
    return held


def _to_detections(
    piece: list[_Entry], iou_types: tuple[str, ...], ground_truth: GroundTruth, start: int, place: str
) -> Detections:
    _check_uniform(piece, iou_types, start, place)
    scores = np.array([entry.score for entry in piece], dtype=np.float64)
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{place}: entry {start + index} must have a finite score, got {scores[index]}")
    image_ids, category_ids = [e.image_id for e in piece], [e.category_id for e in piece]
    image_index = _known("image_id", image_ids, ground_truth.image_ids, start, place)
    category_index = _known("category_id", category_ids, ground_truth.category_ids, start, place)
    _check_names(piece, category_index, ground_truth.names, start, place)
    boxes_xywh = np.array([entry.bbox for entry in piece]) if "bbox" in iou_types else None
    segmentations = None
    if "segm" in iou_types:
        sizes_hw = ground_truth.image_hw[image_index]
        segmentations = [entry.segmentation for entry in piece]
        _check_outlines(segmentations, sizes_hw, start, place)
    if boxes_xywh is None:
        sizes = sizes_hw.tolist()
        rles = [outline_to_rle(o, *size) for o, size in zip(segmentations, sizes, strict=True)]
        areas_px, boxes_xywh = measure_codes(rles)
    else:
        areas_px = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    if segmentations is not None:
        cells = cells_of(image_index, category_index, ground_truth.num_categories)
        wanted = is_member(cells, ground_truth.cells).tolist()
        segmentations = [
            outline if keep else None for outline, keep in zip(segmentations, wanted, strict=True)
        ]
    return Detections(
        image_index=image_index,
        category_index=category_index,
        scores=scores,
        areas_px=areas_px,
        boxes_xywh=boxes_xywh,
        segmentations=segmentations,
    )


def _known(key: str, ids: list[int], known_ids: np.ndarray, start: int, place: str) -> np.ndarray:
    try:
        found = np.array(ids, dtype=np.int64)
    except OverflowError:  # no id of the ground truth has more than 64 bits
        found = np.array([i if abs(i) < 1 << 63 else -1 for i in ids], dtype=np.int64)
    unknown = np.flatnonzero(~is_member(found, known_ids) | (found != np.array(ids, dtype=object)))
    if len(unknown):
        value, index = ids[unknown[0]], start + unknown[0]
        raise ValueError(f"{place}: entry {index} has {key} {value}, which the ground truth does not list")
    return np.searchsorted(known_ids, found)


def _check_names(
    piece: list[_Entry], category_index: np.ndarray, names: tuple[str, ...], start: int, place: str
) -> None:
    for index, entry in enumerate(piece):
        if entry.category_name is not UNSET:
            name = names[category_index[index]]
            if conflict := name_conflict({entry.category_id: name}, {entry.category_id: entry.category_name}):
                raise ValueError(f"{place}: entry {start + index} names another class: {conflict}")


def _check_uniform(piece: list[_Entry], iou_types: tuple[str, ...], start: int, place: str) -> None:
    has_box, has_mask = "bbox" in iou_types, "segm" in iou_types
    for index, entry in enumerate(piece, start=start):
        if (entry.bbox is not UNSET) is not has_box or (entry.segmentation is not UNSET) is not has_mask:
            held = _iou_types_of(entry, f"{place}: entry {index}")
            raise ValueError(f"{place}: entry {index} holds {held}, but the first entry holds {iou_types}")


def _check_outlines(outlines: list[Rle | list], sizes_hw: np.ndarray, start: int, place: str) -> None:
    index = [i for i, outline in enumerate(outlines) if type(outline) is Rle]
    rles = [outlines[i] for i in index]
    given_hw = np.array([rle.size for rle in rles], dtype=np.int64).reshape(-1, 2)
    wrong = np.flatnonzero((given_hw != sizes_hw[index]).any(axis=1))
    if len(wrong):
        i = index[wrong[0]]
        raise ValueError(
            f"{place}: entry {start + i} has an RLE of size {given_hw[wrong[0]].tolist()}, but its image has "
            f"{sizes_hw[i].tolist()}"
        )
    faults = find_code_faults([rle.counts for rle in rles], sizes_hw[index])
    if faults:
        first = min(faults)
        raise ValueError(f"{place}: entry {start + index[first]} holds no mask of its image: {faults[first]}")
    for i, outline in enumerate(outlines):
        if type(outline) is list and (fault := polygon_fault(outline, sizes_hw[i].tolist())):
            raise ValueError(f"{place}: entry {start + i} holds no outline of its image: {fault}")


def _no_detections() -> Detections:
    return Detections(
        image_index=np.zeros(0, dtype=np.int64),
        category_index=np.zeros(0, dtype=np.int64),
        scores=np.zeros(0),
        areas_px=np.zeros(0),
        boxes_xywh=np.zeros((0, 4)),
        segmentations=[],
    )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
