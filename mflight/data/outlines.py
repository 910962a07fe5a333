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
        drawn = torch.zeros((len(self), *size_hw), dtype=torch.uint8)
        coordinates = self.vertices.double().flatten().tolist()
        codes, owners = [], []
        for instance in range(len(self)):
            first, last = self.polygon_offsets[instance : instance + 2]
            edges = (2 * self.vertex_offsets[first : last + 1]).tolist()
            polygons = [coordinates[a:b] for a, b in pairwise(edges)]
            if polygons:
                codes.append(coco_mask.merge(coco_mask.frPyObjects(polygons, *size_hw)))
                owners.append(instance)
        if owners:
            drawn[owners] = torch.from_numpy(
                coco_mask.decode(codes).transpose(2, 0, 1).copy()
            )  # [H, W, n] -> [n, H, W]
        for instance, mask in self.masks.items():
            drawn[instance] = mask
        return drawn
