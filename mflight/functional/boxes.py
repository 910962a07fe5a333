"""Boxes in their two forms. Every function takes numpy arrays or tensors and returns the same kind.

Boxes hold four numbers along their last axis; anything else is a ValueError that names the shape.
"""

from typing import TypeVar

import numpy as np
from torch import Tensor

Boxes = TypeVar("Boxes", np.ndarray, Tensor)


def xywh_to_xyxy(boxes_xywh: Boxes) -> Boxes:
    """Turn ``[..., 4]`` boxes from corner and size, the form of LVIS files, into two corners.

    Args:
        boxes_xywh: ``[..., 4]``: left, top, width and height in px; any number type.

    Returns:
        ``[..., 4]`` of the same type: ``x1, y1, x2, y2`` in px, ``x2`` and ``y2`` exclusive.

    Example:
        >>> xywh_to_xyxy(np.array([[2, 3, 10, 20]])).tolist()
        [[2, 3, 12, 23]]
    """
    boxes = _copy_boxes(boxes_xywh)
    boxes[..., 2:] += boxes[..., :2]
    return boxes


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """Turn ``[..., 4]`` boxes from two corners into corner and size, the form of LVIS files.

    Args:
        boxes: ``[..., 4]``: ``x1, y1, x2, y2`` in px; any number type.

    Returns:
        ``[..., 4]`` of the same type: left, top, width and height in px.

    Example:
        >>> xyxy_to_xywh(np.array([[2, 3, 12, 23]])).tolist()
        [[2, 3, 10, 20]]
    """
    boxes_xywh = _copy_boxes(boxes)
    boxes_xywh[..., 2:] -= boxes_xywh[..., :2]
    return boxes_xywh


def box_area(boxes: Boxes) -> Boxes:
    """Return ``[...]``: the area in px² of ``[..., 4]`` xyxy boxes; a box turned inside out has none.

    Args:
        boxes: ``[..., 4]``: ``x1, y1, x2, y2`` in px; any signed number type.

    Returns:
        ``[...]`` of the same type, ``>= 0``.

    Example:
        >>> box_area(np.array([[2, 3, 12, 23], [5, 5, 4, 9]])).tolist()
        [200, 0]
    """
    _check_boxes(boxes)
    size_wh = (boxes[..., 2:] - boxes[..., :2]).clip(0)
    return size_wh[..., 0] * size_wh[..., 1]


def clip_boxes(boxes: Boxes, size_hw: tuple[int, int]) -> Boxes:
    """Cut ``[..., 4]`` xyxy boxes at the edges of an image; a box wholly outside becomes empty.

    Args:
        boxes: ``[..., 4]``: ``x1, y1, x2, y2`` in px; any number type.
        size_hw: ``(H, W)`` of the image in px.

    Returns:
        ``[..., 4]`` of the same type, ``0 <= x <= W`` and ``0 <= y <= H``.

    Example:
        >>> clip_boxes(np.array([[-5, 2, 12, 30]]), size_hw=(20, 10)).tolist()
        [[0, 2, 10, 20]]
    """
    height, width = size_hw
    clipped = _copy_boxes(boxes)
    clipped[..., 0::2] = clipped[..., 0::2].clip(0, width)
    clipped[..., 1::2] = clipped[..., 1::2].clip(0, height)
    return clipped


def _copy_boxes(boxes: Boxes) -> Boxes:
    _check_boxes(boxes)
    return boxes.clone() if isinstance(boxes, Tensor) else boxes.copy()


def _check_boxes(boxes: np.ndarray | Tensor) -> None:
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have a last axis of 4 numbers, got shape {tuple(boxes.shape)}")
