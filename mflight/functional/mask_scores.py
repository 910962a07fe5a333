"""How wrong an instance mask looks: torn, cut off, beside the image's edges. Pure functions."""

import numpy as np
from scipy import ndimage


def torn_ratio(mask: np.ndarray, kept: np.ndarray) -> float:
    """Return the share of a mask that lies outside of the components that are kept of it.

    Args:
        mask: ``bool[H, W]`` with at least one pixel of object.
        kept: ``bool[H, W]``, a part of it.

    Returns:
        A share in [0, 1]; 0 for an instance in one piece.

    Example:
        >>> torn_ratio(np.array([[1, 1, 1, 0, 1]]), np.array([[1, 1, 1, 0, 0]]))
        0.25
    """
    return 1.0 - float(kept.sum()) / float(mask.sum())


def cut_ratio(mask: np.ndarray) -> float:
    """Return the share of a mask's outline that lies on the border of the image: there the object goes on.

    Args:
        mask: ``bool[H, W]`` with at least one pixel of object.

    Returns:
        A share in [0, 1] of the object's pixels that touch the background or the border (4-connected).

    Example:
        >>> mask = np.zeros((5, 5), dtype=bool)
        >>> mask[0:3, 1:4] = True
        >>> cut_ratio(mask)  # 3 of the 8 pixels around the one in the middle
        0.375
    """
    outline = mask & ~ndimage.binary_erosion(mask)
    on_border = np.ones_like(mask)
    on_border[1:-1, 1:-1] = False
    return float((outline & on_border).sum()) / float(outline.sum())


def edge_ratio(image: np.ndarray, mask: np.ndarray) -> float:
    """Return how much stronger the image's edges are along a mask's outline than elsewhere in the image.

    An edge is the largest difference between two neighbouring pixels, over axes and channels; within one
    pixel of the outline it counts. The outline along the image's border counts for nothing.

    Args:
        image: ``uint8[H, W, 3]``.
        mask: ``bool[H, W]``.

    Returns:
        Mean edge along the outline over the mean edge of the image, >= 0: about 1 for a mask that has nothing
        to do with the image, 0 where the image or the outline shows no edge at all.

    Example:
        >>> image = np.zeros((8, 8, 3), dtype=np.uint8)
        >>> image[:, 4:] = 90
        >>> right = np.arange(8)[None].repeat(8, axis=0) >= 4
        >>> edge_ratio(image, right), edge_ratio(image, right.T)
        (2.0, 1.0)
    """
    levels = image.astype(np.int16)
    edges = np.zeros(mask.shape, dtype=np.int16)
    for axis in (0, 1):
        steps = np.abs(np.diff(levels, axis=axis)).max(axis=2)
        before = [slice(None, -1) if axis == one else slice(None) for one in (0, 1)]
        after = [slice(1, None) if axis == one else slice(None) for one in (0, 1)]
        for side in (tuple(before), tuple(after)):
            edges[side] = np.maximum(edges[side], steps)
    edges = ndimage.maximum_filter(edges, size=3)
    outline = mask & ~ndimage.binary_erosion(mask, border_value=1)
    mean_edge = float(edges.mean())
    return float(edges[outline].mean()) / mean_edge if outline.any() and mean_edge > 0 else 0.0
