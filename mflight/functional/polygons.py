"""The outlines of binary masks as polygons along the edges of their pixels. Pure numpy functions."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

_STEPS_XY = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # down, right, up, left


def mask_to_polygons(mask: np.ndarray, *, with_holes: bool = False) -> list[list[int]]:
    """Trace the outlines of a mask; without holes the polygons cover exactly its pixels.

    Args:
        mask: ``bool`` or ``uint8[H, W]``; every value but 0 is object.
        with_holes: also return the outline of each hole. By the even-odd rule all of them together are the
            mask; COCO and LVIS unite the polygons of an instance, so there a hole is filled.

    Returns:
        One flat list ``x, y, x, y, ...`` in px for each outline, corners of pixels, at least 4 points long.
        Pixels that touch at a corner belong together. The object lies on the left of each walk, so outlines
        and holes run in opposite senses.

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
    inside = mask != 0
    inside = inside if with_holes else ndimage.binary_fill_holes(inside)
    return [_corners(walk).ravel().tolist() for walk in _walks(inside)]


def _walks(inside: np.ndarray) -> Iterator[np.ndarray]:
    """Yield each closed walk along pixel edges: ``int64[N, 3]``, a corner ``x, y`` and the step from it."""
    leaving = _edges(inside)
    height, width, _ = leaving.shape
    y, x, direction = np.nonzero(leaving)  # in the order of the rows
    next_xy = np.stack([x, y], axis=1) + _STEPS_XY[direction]
    turned = (direction[:, None] + [-1, 0, 1]) % 4  # a right turn first: it joins what touches at a corner
    is_there = leaving[next_xy[:, 1, None], next_xy[:, 0, None], turned]
    after = turned[np.arange(len(turned)), is_there.argmax(axis=1)]
    place = np.ravel_multi_index((y, x, direction), (height, width, 4))
    following = np.ravel_multi_index((next_xy[:, 1], next_xy[:, 0], after), (height, width, 4))
    number_of_next = np.searchsorted(place, following).tolist()
    edges, is_walked = np.stack([x, y, direction], axis=1), bytearray(len(place))
    for start in range(len(place)):
        walk, number = [], start
        while not is_walked[number]:
            is_walked[number] = True
            walk.append(number)
            number = number_of_next[number]
        if walk:
            yield edges[walk]


def _edges(inside: np.ndarray) -> np.ndarray:
    """Return ``bool[H + 1, W + 1, 4]``: whether an outline leaves a corner of pixels in each direction."""
    around = np.pad(inside, 1)
    upper_left, upper_right = around[:-1, :-1], around[:-1, 1:]
    lower_left, lower_right = around[1:, :-1], around[1:, 1:]
    return np.stack(
        [
            lower_right & ~lower_left,
            upper_right & ~lower_right,
            upper_left & ~upper_right,
            lower_left & ~upper_left,
        ],
        axis=2,
    )


def _corners(walk: np.ndarray) -> np.ndarray:
    """Keep the points ``int64[M, 2]`` at which a closed walk turns."""
    return walk[walk[:, 2] != np.roll(walk[:, 2], 1), :2]
