"""From the attention of a region's words to its instance mask."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, validate_call
from torch import Tensor

from mflight.functional.attention import attention_to_heat_maps, heat_map_to_mask
from mflight.functional.bilateral import BilateralSettings, refine_mask
from mflight.functional.bilateral_batch import refine_masks
from mflight.functional.layout import MosaicLayout
from mflight.functional.masks import mask_to_box

PositiveFloat = Annotated[float, Field(gt=0.0)]
OpenUnitFloat = Annotated[float, Field(gt=0.0, lt=1.0)]
Refiner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes a canvas ``uint8[H, W, 3]`` and boxes ``float[N, 4]`` (xyxy, px); returns masks ``bool[N, H, W]``."""


@dataclass(frozen=True)
class LabeledRegion:
    """What became of one region, from the first step to the last; all of the region's size.

    Attributes:
        heat_map: ``uint8[H, W]``, the attention of the words with a peak of 255.
        coarse_mask: ``bool[H, W]``, the heat map cut at the threshold.
        mask: ``bool[H, W]``, moved to the edges of the image, or the refiner's.
    """

    heat_map: np.ndarray
    coarse_mask: np.ndarray
    mask: np.ndarray


class AttentionLabeler:
    """Turn attention maps and the decoded image into one mask for each region.

    Attention is averaged over the resolutions to a heat map and cut at a threshold; the bilateral solver then
    moves the outline to the edges of the image. Settings are the published ones.

    Args:
        threshold: ``"otsu"`` chooses a level for each region; a number in (0, 1) is a share of the peak.
        num_bilateral_passes: how often the solver is applied; 0 keeps the coarse mask.
        sigma_spatial_px: side of a cell of the bilateral grid in px; small images want small cells.
        sigma_luma: cell along luma, in 8-bit levels.
        sigma_chroma: cell along each chroma axis, in 8-bit levels.
        smoothness: weight of smoothness against the coarse mask (lambda).
        confidence: weight of the coarse mask at every pixel.
        blur_self_weight: of a cell in the blur of the bilateral grid; each of its neighbours weighs 1.
        num_bistochastize_steps: of the blur's normalisation.
        max_iterations: of the solver in each pass. More of them give another, smoother mask.
        tolerance: the solver also ends when its residual is this share of the right-hand side.
        bilateral_cut: pixels above this share of the solver's peak are object.
        refiner: replaces each mask by what it finds on the canvas in the mask's box, inside of the region;
            ``mflight.detection.segment_anything.SegmentAnything`` is one. ``None`` keeps the masks.

    Source:
        Xie et al., "MosaicFusion", arXiv:2309.13042, section 3.3; table 6 for the refiner (SAM: APr 16.0
        against 15.2).
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        threshold: Literal["otsu"] | OpenUnitFloat = "otsu",
        num_bilateral_passes: Annotated[int, Field(ge=0)] = 2,
        sigma_spatial_px: PositiveFloat = 16.0,
        sigma_luma: PositiveFloat = 16.0,
        sigma_chroma: PositiveFloat = 8.0,
        smoothness: PositiveFloat = 256.0,
        confidence: Annotated[float, Field(gt=0.0, le=1.0)] = 0.999,
        blur_self_weight: PositiveFloat = 10.0,
        num_bistochastize_steps: Annotated[int, Field(ge=1)] = 10,
        max_iterations: Annotated[int, Field(ge=1)] = 25,
        tolerance: Annotated[float, Field(ge=0.0, lt=1.0)] = 1e-5,
        bilateral_cut: OpenUnitFloat = 0.5,
        refiner: Refiner | None = None,
    ) -> None:
        self.threshold = threshold
        self.num_bilateral_passes = num_bilateral_passes
        self.refiner = refiner
        self.settings = BilateralSettings(
            sigma_spatial_px=sigma_spatial_px,
            sigma_luma=sigma_luma,
            sigma_chroma=sigma_chroma,
            smoothness=smoothness,
            confidence=confidence,
            blur_self_weight=blur_self_weight,
            num_bistochastize_steps=num_bistochastize_steps,
            max_iterations=max_iterations,
            tolerance=tolerance,
            cut=bilateral_cut,
        )

    def label(
        self, image: np.ndarray, layout: MosaicLayout, attention_maps: Sequence[Sequence[Tensor]]
    ) -> list[LabeledRegion]:
        """Make the masks of one canvas; see `label_batch`, whose lists it takes and gives an item of."""
        return self.label_batch([image], [layout], [attention_maps])[0]

    def label_batch(
        self,
        images: Sequence[np.ndarray],
        layouts: Sequence[MosaicLayout],
        attention_maps: Sequence[Sequence[Sequence[Tensor]]],
    ) -> list[list[LabeledRegion]]:
        """Make the masks of all regions of several canvases, on the device that holds the attention.

        Args:
            images: for each canvas, ``uint8[canvas height, canvas width, 3]``, RGB: its decoded image.
            layouts: for each canvas, where its regions lie.
            attention_maps: for each canvas and region, ``S`` tensors ``float[h, w]``: the attention of the
                region's words at each UNet resolution, averaged over evaluations and heads, in [0, 1].

        Returns:
            For each canvas, one `LabeledRegion` for each region, in the order of its layout. No attention
            gives an empty mask.

        Raises:
            ValueError: if an image is not of its canvas's size, if attention is given for another count of
                regions than a layout has, or if a value of it is negative or not finite.
        """
        for canvas, (image, layout, maps) in enumerate(zip(images, layouts, attention_maps, strict=True)):
            if image.shape[:2] != tuple(layout.canvas_hw):
                size_hw = image.shape[:2]
                raise ValueError(f"canvas {canvas} is of size {layout.canvas_hw}, its image of {size_hw}")
            if len(maps) != len(layout.region_boxes):
                counts = f"{len(layout.region_boxes)} regions, got the attention of {len(maps)}"
                raise ValueError(f"the layout of canvas {canvas} has {counts}")
        _check_attention(attention_maps)
        crops = [
            image[y1:y2, x1:x2]
            for image, layout in zip(images, layouts, strict=True)
            for x1, y1, x2, y2 in layout.region_boxes
        ]
        maps_of_regions = [maps for maps_of_canvas in attention_maps for maps in maps_of_canvas]
        heat_maps = _regions_to_heat_maps([crop.shape[:2] for crop in crops], maps_of_regions)
        coarse_masks = [heat_map_to_mask(heat_map, self.threshold) for heat_map in heat_maps]
        masks = self._refine(crops, coarse_masks)
        if self.refiner is not None:
            masks = self._segment(images, layouts, masks)
        regions = (
            LabeledRegion(heat_map.cpu().numpy(), coarse_mask.cpu().numpy(), mask)
            for heat_map, coarse_mask, mask in zip(heat_maps, coarse_masks, masks, strict=True)
        )
        return [list(islice(regions, len(layout.region_boxes))) for layout in layouts]

    def _refine(self, crops: Sequence[np.ndarray], coarse_masks: Sequence[Tensor]) -> list[np.ndarray]:
        """Move the outlines: one by one on the CPU, where that is faster, together on any other device."""
        if any(mask.device.type != "cpu" for mask in coarse_masks):
            return self._refine_together(crops, coarse_masks)
        pairs = zip(crops, coarse_masks, strict=True)
        passes, settings = self.num_bilateral_passes, self.settings
        return [refine_mask(crop, mask.numpy(), passes, settings)[0] for crop, mask in pairs]

    def _refine_together(
        self, crops: Sequence[np.ndarray], coarse_masks: Sequence[Tensor]
    ) -> list[np.ndarray]:
        device = coarse_masks[0].device
        tensors = [torch.from_numpy(np.ascontiguousarray(crop)).to(device) for crop in crops]
        masks, _ = refine_masks(tensors, coarse_masks, self.num_bilateral_passes, self.settings)
        return [mask.cpu().numpy() for mask in masks]

    def _segment(
        self, images: Sequence[np.ndarray], layouts: Sequence[MosaicLayout], masks: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Ask the refiner, canvas by canvas; a region without a mask has no box, and stays empty."""
        remaining, refined = iter(masks), []
        for image, layout in zip(images, layouts, strict=True):
            own = [next(remaining) for _ in layout.region_boxes]
            found = [index for index, mask in enumerate(own) if mask.any()]
            corners = np.array(layout.region_boxes)[found, :2]
            boxes = np.array([mask_to_box(own[index]) for index in found]).reshape(-1, 4)
            if found:
                on_canvas = self.refiner(image, (boxes + np.tile(corners, 2)).astype(np.float64))
                for index, mask in zip(found, on_canvas, strict=True):
                    x1, y1, x2, y2 = layout.region_boxes[index]
                    own[index] = mask[y1:y2, x1:x2].copy()
            refined.extend(own)
        return refined


def _regions_to_heat_maps(
    sizes_hw: Sequence[tuple[int, int]], attention_maps: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """Return one ``uint8[H, W]`` for each region; regions of one size go together."""
    members = defaultdict(list)
    for index, (size_hw, maps_of_region) in enumerate(zip(sizes_hw, attention_maps, strict=True)):
        members[size_hw, tuple(maps.shape for maps in maps_of_region)].append(index)
    heat_maps: dict[int, Tensor] = {}
    for (size_hw, _), indices in members.items():
        per_resolution = zip(*(attention_maps[index] for index in indices), strict=True)
        batch = attention_to_heat_maps([torch.stack(maps) for maps in per_resolution], size_hw)
        heat_maps.update(zip(indices, batch, strict=True))
    return [heat_maps[index] for index in range(len(sizes_hw))]


def _check_attention(attention_maps: Sequence[Sequence[Sequence[Tensor]]]) -> None:
    places, ranges = [], []
    for canvas, maps_of_canvas in enumerate(attention_maps):
        for region, maps_of_region in enumerate(maps_of_canvas):
            for resolution, maps in enumerate(maps_of_region):
                places.append(f"canvas {canvas}, region {region}, resolution {resolution}")
                ranges.append(torch.stack(maps.aminmax()))
    if not ranges:
        return
    for place, (lowest, highest) in zip(places, torch.stack(ranges).tolist(), strict=True):
        if not 0 <= lowest <= highest < math.inf:
            raise ValueError(f"attention must be finite and >= 0, got {lowest} to {highest} in {place}")
