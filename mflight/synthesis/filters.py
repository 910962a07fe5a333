"""Which masks of a canvas are good enough to train on: the component filter, and stricter rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, validate_call

from mflight.functional.layout import MosaicLayout
from mflight.functional.mask_scores import cut_ratio, edge_ratio, torn_ratio
from mflight.functional.masks import label_components

RejectionRule = Literal[
    "no_component",
    "too_small",
    "too_large",
    "too_many_components",
    "torn",
    "cut",
    "off_edges",
    "name_too_long",
    "not_finite",
]
"""The filter's rules, and last those by which ``MosaicSynthesizer`` drops a whole canvas."""

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class FilteredRegion:
    """The verdict on one region.

    Attributes:
        mask: the kept components, ``bool[canvas height, canvas width]``; ``None`` if the region is rejected.
        rejected: the rule that rejected the region; ``None`` if it is kept.
    """

    mask: np.ndarray | None
    rejected: RejectionRule | None


@dataclass(frozen=True)
class FilteredCanvas:
    """The verdict on a canvas.

    Attributes:
        regions: one verdict for each region, in the order of the layout.
        is_kept: whether the canvas may be used at all. Without rescue one rejected region drops it.
    """

    regions: tuple[FilteredRegion, ...]
    is_kept: bool


class RegionFilter:
    """Keep the regions whose mask has the right count of components of a sound size.

    A component (4-connected) counts if its area lies within ``area_ratio_range`` of the base region's, bounds
    rounded to whole pixels and included; all others are left out of the mask. The rules, in this order:
    ``no_component``: the mask is empty; ``too_small``: all components are below the range; ``too_large``:
    none is within and one is above; ``too_many_components``: more than ``max_components`` are within.

    Three further rules ask whether what is kept is worth its place, each off while its setting is ``None``.
    ``torn``: too much of the mask is in components that are left out; ``cut``: too much of the outline lies
    on the region's border, so that the object goes on beyond it; ``off_edges``: the outline does not follow
    the edges of the image.

    Args:
        area_ratio_range: smallest and largest area of a component, as a share of the base region's area.
        max_components: most components of one instance; several make one mask together.
        rescue: whether a canvas with a rejected region keeps its good ones. The published filter drops it.
        max_torn_ratio: largest share of the mask that may be left out.
        max_cut_ratio: largest share of the outline that may lie on the region's border.
        min_edge_ratio: least mean edge along the outline, in mean edges of the region; a mask that has
            nothing to do with the image has about 1.

    Raises:
        ValueError: if ``area_ratio_range`` is not increasing.

    Source:
        Xie et al., "MosaicFusion", arXiv:2309.13042, section 3.3: areas of 5 % to 95 %, one component. The
        three further rules are ours.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        area_ratio_range: tuple[Ratio, Ratio] = (0.05, 0.95),
        max_components: Annotated[int, Field(ge=1)] = 1,
        rescue: bool = False,
        max_torn_ratio: Ratio | None = None,
        max_cut_ratio: Ratio | None = None,
        min_edge_ratio: Annotated[float, Field(gt=0.0)] | None = None,
    ) -> None:
        if area_ratio_range[0] >= area_ratio_range[1]:
            raise ValueError(f"area_ratio_range must be increasing, got {area_ratio_range}")
        self.area_ratio_range = area_ratio_range
        self.max_components = max_components
        self.rescue = rescue
        self.max_torn_ratio, self.max_cut_ratio = max_torn_ratio, max_cut_ratio
        self.min_edge_ratio = min_edge_ratio

    def apply(
        self, masks: Sequence[np.ndarray], layout: MosaicLayout, image: np.ndarray | None = None
    ) -> FilteredCanvas:
        """Judge every region of a canvas.

        Args:
            masks: one ``bool[region height, region width]`` for each region, in the order of the layout.
            layout: where the regions lie on the canvas.
            image: ``uint8[canvas height, canvas width, 3]``; only ``min_edge_ratio`` looks at it.

        Returns:
            The kept masks at the size of the canvas, or the rules that rejected them. Masks of neighbours may
            intersect where the regions overlap.

        Raises:
            ValueError: if the masks are not as many as the regions, if one is not of its region's size, or if
                ``min_edge_ratio`` is set and there is no image.
        """
        if self.min_edge_ratio is not None and image is None:
            raise ValueError(f"min_edge_ratio={self.min_edge_ratio} needs the image, got None")
        if len(masks) != len(layout.region_boxes):
            raise ValueError(f"the layout has {len(layout.region_boxes)} regions, got {len(masks)} masks")
        regions = tuple(self._filter_region(index, mask, layout, image) for index, mask in enumerate(masks))
        verdicts = [region.rejected is None for region in regions]
        return FilteredCanvas(regions, is_kept=any(verdicts) if self.rescue else all(verdicts))

    def area_range_px(self, layout: MosaicLayout) -> tuple[int, int]:
        """Return the smallest and the largest area in px that a component may have, both included."""
        smallest, largest = self.area_ratio_range
        return round(smallest * layout.base_area_px), round(largest * layout.base_area_px)

    def _filter_region(
        self, index: int, mask: np.ndarray, layout: MosaicLayout, image: np.ndarray | None
    ) -> FilteredRegion:
        x1, y1, x2, y2 = layout.region_boxes[index]
        if mask.shape != (y2 - y1, x2 - x1):
            raise ValueError(f"region {index} is of size {(y2 - y1, x2 - x1)}, its mask of {mask.shape}")
        components, areas_px = label_components(mask)
        smallest, largest = self.area_range_px(layout)
        is_sound = (areas_px >= smallest) & (areas_px <= largest)
        rejected = self._broken_rule(areas_px, is_sound, largest)
        if rejected is not None:
            return FilteredRegion(mask=None, rejected=rejected)
        kept = np.concatenate([[False], is_sound])[components]
        rejected = self._flaw(mask.astype(bool), kept, None if image is None else image[y1:y2, x1:x2])
        if rejected is not None:
            return FilteredRegion(mask=None, rejected=rejected)
        canvas_mask = np.zeros(layout.canvas_hw, dtype=bool)
        canvas_mask[y1:y2, x1:x2] = kept
        return FilteredRegion(mask=canvas_mask, rejected=None)

    def _broken_rule(self, areas_px: np.ndarray, is_sound: np.ndarray, largest: int) -> RejectionRule | None:
        if len(areas_px) == 0:
            return "no_component"
        if not is_sound.any():
            return "too_large" if areas_px.max() > largest else "too_small"
        if is_sound.sum() > self.max_components:
            return "too_many_components"
        return None

    def _flaw(self, mask: np.ndarray, kept: np.ndarray, crop: np.ndarray | None) -> RejectionRule | None:
        if self.max_torn_ratio is not None and torn_ratio(mask, kept) > self.max_torn_ratio:
            return "torn"
        if self.max_cut_ratio is not None and cut_ratio(kept) > self.max_cut_ratio:
            return "cut"
        if self.min_edge_ratio is not None and edge_ratio(crop, kept) < self.min_edge_ratio:
            return "off_edges"
        return None
