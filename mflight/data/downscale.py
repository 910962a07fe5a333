"""Smaller mosaics: all that the published filter keeps is larger than COCO's "large" bound of 96 x 96 px."""

from typing import Annotated

import torch
from pydantic import Field, validate_call
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as VF

from mflight.data.target import INSTANCE_KEYS, Target
from mflight.functional.masks import mask_areas, mask_to_box, resize_mask

Scale = Annotated[float, Field(gt=0.0, le=1.0)]


class RandomDownscale:
    """Make a labelled image smaller by a random factor, once all other transforms have been applied.

    A transform that fits images to a size would undo it. The factor is log-uniform, so that each halving is
    as likely as the next, and comes from torch's global random state, which the loader sets for each slot
    from seed, rank and step: each use of a sample has its own factor, and a replay draws the same ones.

    Args:
        scale_range: least and largest factor; (1, 1) changes nothing and draws nothing.
        min_area_px: instances with fewer pixels than this afterwards lose their label.

    Raises:
        ValueError: if ``scale_range`` falls.
    """

    @validate_call
    def __init__(
        self,
        *,
        scale_range: tuple[Scale, Scale] = (1.0, 1.0),
        min_area_px: Annotated[int, Field(ge=1)] = 32,
    ) -> None:
        if scale_range[0] > scale_range[1]:
            raise ValueError(f"scale_range must rise, got {scale_range}")
        self.scale_range = scale_range
        self.min_area_px = min_area_px

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Return a smaller sample; arguments as in :func:`downscale`."""
        low, high = self.scale_range
        if low == 1.0:
            return image, target
        scale = low * (high / low) ** float(torch.rand(()))
        return downscale(image, target, scale, self.min_area_px)


def downscale(image: Tensor, target: Target, scale: float, min_area_px: int) -> tuple[Tensor, Target]:
    """Make a labelled image smaller.

    Args:
        image: float32[3, H, W] in [0, 1].
        target: of the image.
        scale: factor of both sides, in (0, 1]; sides are rounded to whole pixels, to one at least.
        min_area_px: least area of an instance afterwards, in pixels.

    Returns:
        The image, antialiased, and its target. A pixel belongs to an instance where at least half of the area
        that it covers did; boxes and areas are those of the new masks. The box of an instance that has become
        too small joins ``ignore_boxes``, its class ``not_exhaustive_labels``.
    """
    height, width = image.shape[1:]
    size_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size_hw == (height, width):
        return image, target
    shrink = torch.tensor([size_hw[1] / width, size_hw[0] / height] * 2)
    masks = torch.zeros((len(target["masks"]), *size_hw), dtype=torch.uint8)
    for mask, old in zip(masks, target["masks"], strict=True):
        mask.copy_(torch.from_numpy(resize_mask(old.numpy(), size_hw)))
    area = torch.from_numpy(mask_areas(masks.numpy())).float()
    keep = area >= min_area_px
    unlabelled = torch.cat([target["ignore_boxes"], target["boxes"][~keep]])
    changed = {**target, "masks": masks, "area": area}
    changed |= {key: changed[key][keep] for key in INSTANCE_KEYS}
    boxes = [mask_to_box(mask.numpy()) for mask in changed["masks"]]
    changed["boxes"] = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    changed["ignore_boxes"] = clip_boxes_to_image(unlabelled * shrink, size_hw)
    lost = target["labels"][~keep]
    changed["not_exhaustive_labels"] = torch.cat([target["not_exhaustive_labels"], lost]).unique()
    return VF.resize(image, list(size_hw), antialias=True), Target(**changed)
