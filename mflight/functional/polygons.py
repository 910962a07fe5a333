"""The outlines of binary masks as polygons along the edges of their pixels. Pure numpy functions."""

import cv2
import numpy as np


def mask_to_polygons(mask: np.ndarray, *, with_holes: bool = False) -> list[list[int]]:
    """Trace the outlines of a mask; without holes the polygons cover exactly its pixels.

    Args:
        mask: ``bool`` or ``uint8[H, W]``; every value but 0 is object.
        with_holes: also return the outline of each hole. By the even-odd rule all of them together are the
            mask; COCO and LVIS unite the polygons of an instance, so there a hole is filled.

    Returns:
        One flat list ``x, y, x, y, ...`` in px for each outline, corners of pixels, at least 4 points long.

    Raises:
        ValueError: if the mask is not 2-D.

    Example:
        >>> mask = np.zeros((8, 8), dtype=bool)
        >>> mask[2:5, 1:7] = True
        >>> mask_to_polygons(mask)
        [[1, 2, 1, 5, 7, 5, 7, 2]]
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask must be [H, W], got shape {mask.shape}")
    # OpenCV walks through the centres of pixels. On a mask of twice the size the outline of an object pixel x
    # lies at 2 x on its near side and at 2 x + 1 on its far one, so (p + 1) // 2 is the edge in the mask.
    doubled = (mask != 0).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    mode = cv2.RETR_CCOMP if with_holes else cv2.RETR_EXTERNAL
    outlines, _ = cv2.findContours(doubled, mode, cv2.CHAIN_APPROX_NONE)
    return [_corners((outline[:, 0] + 1) // 2).ravel().tolist() for outline in outlines]


def _corners(points: np.ndarray) -> np.ndarray:
    """Keep the points at which a closed walk along pixel edges turns."""
    moves = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = moves - np.roll(moves, 1, axis=0), np.roll(moves, -1, axis=0) - moves
    return moves[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
