"""Binary instance masks: run-length coding, boxes, connected components. Pure numpy functions.

A mask is ``bool`` or ``uint8[H, W]``; an array of other than two axes is a ValueError that names its shape.
"""

from typing import Any, TypedDict

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

from mflight.functional.run_lengths import compress_code


class RLE(TypedDict):
    """A mask as in LVIS and COCO files: ``size`` = [H, W], ``counts`` = compressed runs in column order."""

    size: list[int]
    counts: str


def rle_encode(mask: np.ndarray) -> RLE:
    """Compress a mask to COCO's run-length code, with text counts that go into JSON as they are.

    Args:
        mask: ``bool`` or ``uint8[H, W]``; every value but 0 is object.

    Returns:
        The code of the mask; an object of 384 x 512 px takes about 1 kB.

    Source:
        pycocotools (the mask API of COCO), which LVIS uses too.

    Example:
        >>> rle_encode(np.eye(2, dtype=bool))
        {'size': [2, 2], 'counts': '0120'}
    """
    _check_mask(mask)
    rle = coco_mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def rle_decode(rle: RLE) -> np.ndarray:
    """Return ``bool[H, W]``: the mask of a run-length code, compressed or a plain list of runs."""
    return coco_mask.decode(compress_code(rle["counts"], rle["size"])).view(np.bool_)


def rle_decode_box(rle: RLE) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Draw a mask within its box alone: several times as fast as the whole image for a smaller object.

    Args:
        rle: compressed or a plain list of runs.

    Returns:
        ``uint8[y2 - y1, x2 - x1]`` of 0 and 1, and ``(x1, y1, x2, y2)`` in px as of ``rle_to_box``.

    Raises:
        ValueError: if a run is negative, or if they go beyond the image.

    Example:
        >>> mask = np.zeros((8, 8), dtype=bool)
        >>> mask[2:5, 1:7] = True
        >>> part, box = rle_decode_box(rle_encode(mask))
        >>> part.shape, int(part.sum()), box
        ((3, 6), 18, (1, 2, 7, 5))
    """
    compressed = compress_code(rle["counts"], rle["size"])
    height, width = rle["size"]
    runs = _runs(compressed["counts"])
    bounds = np.cumsum(runs)
    if len(runs) and (runs.min() < 0 or bounds[-1] > height * width):
        raise ValueError(
            f"a mask's runs must be >= 0 and fill at most {height} x {width} px, got {bounds[-1]} px"
        )
    x1, y1, x2, y2 = box = rle_to_box(compressed)
    box_height = y2 - y1
    if not box_height:
        return np.zeros((0, 0), dtype=np.uint8), box
    ends = bounds[1::2]
    starts = bounds[0::2][: len(ends)]
    is_filled = ends > starts
    # A run that goes on in the next column makes the box as high as the image, so this holds for it too.
    columns, rows = np.divmod(np.stack([starts, ends - 1], axis=1)[is_filled], height)
    places = (columns - x1) * box_height + rows - y1 + [0, 1]
    changes = np.concatenate([[0], places.ravel(), [(x2 - x1) * box_height]])
    part = np.repeat((np.arange(len(changes) - 1) & 1).astype(np.uint8), np.diff(changes))
    return part.reshape(x2 - x1, box_height).T, box


def _runs(counts: bytes) -> np.ndarray:
    """Return the lengths ``int64[K]`` of the runs in COCO's compressed text, background first.

    Each number is written in base 32, its low digits first, as characters from "0" on; 32 marks that another
    digit follows, and 16 in the last one that the number is negative. From the fourth run on, the number is
    the difference to the run before the last (pycocotools, the mask API of COCO).
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    widths = 5 * (ends - starts + 1)
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, widths // 5))
    runs = np.add.reduceat((digits & 31) << shifts, starts)
    runs -= np.where(digits[ends] & 16, 1 << widths, 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def rle_to_box(rle: RLE) -> tuple[int, int, int, int]:
    """Return the smallest box around a mask, without drawing it.

    Args:
        rle: compressed or a plain list of runs.

    Returns:
        ``(x1, y1, x2, y2)`` in px, ``x2`` and ``y2`` exclusive, as of ``mask_to_box``; zeros if
        the mask is empty.
    """
    compressed = compress_code(rle["counts"], rle["size"])
    if not coco_mask.area(compressed):  # object runs of no length would give a box all the same
        return 0, 0, 0, 0
    x, y, width, height = coco_mask.toBbox(compressed).astype(int).tolist()
    return x, y, x + width, y + height


def mask_to_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the smallest box around a mask.

    Args:
        mask: ``bool`` or ``uint8[H, W]`` with at least one pixel of object.

    Returns:
        ``(x1, y1, x2, y2)`` in px, ``x2`` and ``y2`` exclusive, so that ``mask[y1:y2, x1:x2]`` is the object.

    Raises:
        ValueError: if the mask is not 2-D, or is empty.

    Example:
        >>> mask = np.zeros((8, 8), dtype=bool)
        >>> mask[2:5, 1:7] = True
        >>> mask_to_box(mask)
        (1, 2, 7, 5)
    """
    _check_mask(mask)
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        raise ValueError(f"an empty mask of shape {mask.shape} has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_to_annotation(mask: np.ndarray) -> dict[str, Any]:
    """Describe a mask as an annotation of LVIS does.

    Args:
        mask: ``bool[H, W]`` with at least one pixel of object.

    Returns:
        ``bbox`` (left, top, width, height in px), ``area`` and ``segmentation``.

    Example:
        >>> mask_to_annotation(np.eye(2, dtype=bool))
        {'bbox': [0, 0, 2, 2], 'area': 2.0, 'segmentation': {'size': [2, 2], 'counts': '0120'}}
    """
    x1, y1, x2, y2 = mask_to_box(mask)
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(mask.sum()), "segmentation": rle_encode(mask)}


def mask_areas(masks: np.ndarray) -> np.ndarray:
    """Return ``int64[N]``: the area of each mask in px.

    Args:
        masks: ``uint8[N, H, W]`` of 0 and 1. Torch's sum takes some hundred times as long for these.

    Returns:
        The number of pixels of each.

    Example:
        >>> mask_areas(np.array([[[0, 1], [1, 1]]], dtype=np.uint8)).tolist()
        [3]
    """
    return np.array([np.count_nonzero(mask) for mask in masks.view(np.bool_)], dtype=np.int64)


def label_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the 4-connected components of a mask: pixels that touch at a corner only are apart.

    Args:
        mask: ``bool`` or ``uint8[H, W]``; every value but 0 is object.

    Returns:
        ``int32[H, W]`` with 0 for background and 1..K for the components, and ``int64[K]``
        with their areas in px.

    Example:
        >>> components, areas_px = label_components(np.array([[1, 1, 0], [0, 0, 1]]))
        >>> components.tolist(), areas_px.tolist()
        ([[1, 1, 0], [0, 0, 2]], [2, 1])
    """
    _check_mask(mask)
    components, num_components = ndimage.label(mask)
    return components, np.bincount(components.ravel(), minlength=num_components + 1)[1:]


def resize_mask(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a mask: a pixel is object where at least half of the area it covers was.

    Args:
        mask: ``bool`` or ``uint8[H, W]``; every value but 0 is object.
        size_hw: the new ``(H, W)`` in px.

    Returns:
        ``bool`` of the new size. Enlarging by a whole factor repeats pixels.

    Example:
        >>> resize_mask(np.array([[1, 1, 0, 1], [1, 1, 0, 0]]), size_hw=(1, 2)).tolist()
        [[True, False]]
    """
    _check_mask(mask)
    image = Image.fromarray((mask != 0).astype(np.uint8) * 255)
    return np.asarray(image.resize(size_hw[::-1], Image.Resampling.BOX)) > 127


def _check_mask(mask: np.ndarray) -> None:
    if mask.ndim != 2:
        raise ValueError(f"a mask must be [H, W], got shape {mask.shape}")
