"""Where the instances of an image lie before their masks are drawn: polygons as points, or masks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


@dataclass(frozen=True)
class Outlines:
    """The outlines of ``N`` instances; points travel through a transform at a fraction of the cost of masks.

    Attributes:
        vertices: float32[V, 2], x and y in pixels, of all polygons one after another.
        vertex_offsets: int64[P + 1]; polygon ``p`` has the vertices ``vertex_offsets[p]:vertex_offsets[p +
            1]``.
        polygon_offsets: int64[N + 1]; instance ``i`` has the polygons
            ``polygon_offsets[i]:polygon_offsets[i + 1]``, united where they overlap.
        masks: uint8[H, W] by instance, for those that have a mask in place of polygons.
    """

    vertices: Tensor
    vertex_offsets: np.ndarray
    polygon_offsets: np.ndarray
    masks: Mapping[int, Tensor]

    def __len__(self) -> int:
        """Return ``N``."""
        return len(self.polygon_offsets) - 1

    def moved(self, vertices: Tensor, masks: Mapping[int, Tensor]) -> "Outlines":
        """Return the same instances with their vertices and masks elsewhere."""
        return replace(self, vertices=vertices, masks=masks)

    def draw(self, size_hw: tuple[int, int]) -> Tensor:
        """Draw every instance as COCO does; what lies outside of the image is cut off.

        Args:
            size_hw: ``(H, W)`` of the image, in pixels.

        Returns:
            uint8[N, H, W] of 0 and 1.
        """
        drawn = np.zeros((len(self), *size_hw), dtype=np.uint8)
        points = self.vertices.numpy().astype(np.float64)
        for instance in range(len(self)):
            first, last = self.polygon_offsets[instance : instance + 2]
            edges = self.vertex_offsets[first : last + 1].tolist()
            if first < last:
                _draw_polygons(drawn[instance], points[edges[0] : edges[-1]], np.array(edges) - edges[0])
        for instance, mask in self.masks.items():
            drawn[instance] = mask.numpy()
        return torch.from_numpy(drawn)


def _draw_polygons(mask: np.ndarray, points: np.ndarray, edges: np.ndarray) -> None:
    """Draw polygons into an empty mask; only the part around them is coded and decoded."""
    height, width = mask.shape
    # moved by whole pixels, COCO's code draws the same pixels
    left, top = (max(0, int(low)) for low in np.floor(points.min(axis=0)))
    x_end, y_end = np.ceil(points.max(axis=0)) + 1
    right, bottom = min(width, int(x_end)), min(height, int(y_end))
    if left >= right or top >= bottom:
        return
    moved = (points - (left, top)).ravel().tolist()
    polygons = [moved[2 * a : 2 * b] for a, b in pairwise(edges.tolist())]
    code = coco_mask.merge(coco_mask.frPyObjects(polygons, bottom - top, right - left))
    mask[top:bottom, left:right] = coco_mask.decode(code)
