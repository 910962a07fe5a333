"""Predictions to run-length coded masks, one small box at a time; none is ever pasted to its image's size."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

from mflight.functional.masks import RLE, rle_encode


def predictions_to_rle(
    prediction: Mapping[str, Tensor],
    size_hw: tuple[int, int],
    threshold: float = 0.5,
    needed: np.ndarray | None = None,
) -> list[RLE | None]:
    """Paste each predicted mask into its image and compress it at once.

    The mask is sampled bilinearly at the centre of each pixel, as in detectron2. torchvision pastes with
    whole pixels, both ends included, which adds a rim of a pixel: a fifth of the area of an object of 20 px.
    Only the pixels of each box are touched; detections that share box and mask are worked out once.

    Args:
        prediction: ``boxes`` float32[N, 4], xyxy px of the image, and ``roi_masks`` float32[N, 1, M, M] in
            [0, 1]; or ``masks`` bool[N, H, W], which are compressed as they are.
        size_hw: ``(H, W)`` of the image, in pixels.
        threshold: a pixel of a ``roi_masks`` above it belongs to the object, in [0, 1).
        needed: ``bool[N]``, whose masks are asked for; ``None``: all of them.

    Returns:
        N compressed RLE masks with text counts, ready for JSON; ``None`` for a mask that is not needed.

    Raises:
        ValueError: if ``threshold`` lies outside [0, 1), if boxes and masks disagree on ``N``, or if masks
            have another size than the image.

    Example:
        >>> import torch
        >>> full = {"boxes": torch.tensor([[2.0, 1.0, 6.0, 9.0]]), "roi_masks": torch.ones(1, 1, 28, 28)}
        >>> rle = predictions_to_rle(full, size_hw=(10, 8))[0]
        >>> coco_mask.decode(rle).any(axis=0).nonzero()[0].tolist()
        [2, 3, 4, 5]
    """
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
    boxes = prediction["boxes"].detach().double().cpu().numpy()
    is_whole = "masks" in prediction
    masks = prediction["masks"] if is_whole else prediction["roi_masks"][:, 0].float()
    masks = masks.detach().cpu().numpy()
    if len(boxes) != len(masks):
        raise ValueError(f"every box needs one mask, got {len(boxes)} boxes and {len(masks)} masks")
    if is_whole and masks.shape[1:] != tuple(size_hw):
        raise ValueError(f"masks must have the size of their image, {size_hw}, got {masks.shape[1:]}")
    known: dict[bytes, RLE] = {}
    results: list[RLE | None] = [None] * len(boxes)
    for index in range(len(boxes)) if needed is None else np.flatnonzero(needed):
        box, mask = boxes[index], masks[index]
        key = box.tobytes() + mask.tobytes()
        if key not in known:
            known[key] = (
                rle_encode(mask) if is_whole else _paste_to_rle(mask, box.tolist(), size_hw, threshold)
            )
        results[index] = known[key]
    return results


def _paste_to_rle(mask: np.ndarray, box: Sequence[float], size_hw: tuple[int, int], threshold: float) -> RLE:
    height, width = size_hw
    x1, y1, x2, y2 = box
    left, columns = _bilinear_weights(x1, x2, width, mask.shape[1])
    top, rows = _bilinear_weights(y1, y2, height, mask.shape[0])
    return _crop_to_rle(rows @ mask @ columns.T > threshold, (left, top), size_hw)


def _bilinear_weights(low: float, high: float, side: int, num_cells: int) -> tuple[int, np.ndarray]:
    """Return the first pixel of an image side in ``low .. high``, and float32[pixels, cells].

    Row ``p`` holds the weight of each cell at the centre of pixel ``first + p``; beyond the
    cells the mask is 0.
    """
    first, last = min(max(math.floor(low), 0), side), min(max(math.ceil(high), 0), side)
    centers = (np.arange(first, max(last, first)) + 0.5 - low) / max(high - low, 1e-6) * num_cells - 0.5
    return first, np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(num_cells))).astype(np.float32)


def _crop_to_rle(crop: np.ndarray, corner_xy: tuple[int, int], size_hw: tuple[int, int]) -> RLE:
    """Code a mask ``bool[h, w]`` at ``corner_xy`` of an empty image, from the runs of its columns."""
    height, width = size_hw
    left, top = corner_xy
    columns = np.zeros(
        (crop.shape[1], crop.shape[0] + 2), dtype=np.int8
    )  # [w, h + 2]: a zero before and after
    columns[:, 1:-1] = crop.T
    column, row = np.nonzero(
        np.diff(columns, axis=1)
    )  # alternately the start of a run and the pixel after its end
    edges = (column + left) * height + row + top
    joined = edges[1:-1:2] == edges[2::2]  # a run to the foot of a column goes on at the head of the next
    keep = np.ones(len(edges), dtype=bool)
    keep[1:-1:2] &= ~joined
    keep[2::2] &= ~joined
    counts = np.diff(np.concatenate(([0], edges[keep], [height * width])))
    if counts[-1] == 0:  # the last run of the object ends with the image
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
