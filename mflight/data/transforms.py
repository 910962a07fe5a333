"""Joint transforms of an image and its target, on torchvision's v2 transforms.

Polygons travel as points and are drawn once, at the final size: 3.5 to 8 times as fast as carrying a
mask of every instance along. Dense masks (run-length coded or synthetic instances) go the dense way.
Randomness comes from torch's global random state, as everywhere in v2.
"""

from typing import Annotated, Any

import torch
from pydantic import Field, validate_call
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from mflight.data.outlines import Outlines
from mflight.data.target import Target, keep_instances
from mflight.functional.masks import mask_areas

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
SidePx = Annotated[int, Field(ge=1)]

_MIN_BOX_SIDE_PX = 1.0


class TrainTransform:
    """Scale, crop, flip and recolour an image with its instances.

    Args:
        short_sides_px: one of these is drawn as the new short side; ``None`` leaves out this step.
        max_long_side_px: cap on the long side in that step.
        jitter_range: range of a random scale, on top of fitting the image into ``crop_hw``, so that (1, 1)
            only fits it. The large-scale jitter of Copy-Paste is (0.1, 2.0). ``None`` leaves out this step.
        crop_hw: ``(H, W)`` to which a larger image is cut at a random place; ``None`` cuts nothing.
        flip_probability: share of images that are mirrored left to right.
        color_strength: largest relative change of brightness, contrast and saturation; a tenth of it is the
            largest turn of the hue. 0 leaves out this step.

    Raises:
        ValueError: if ``jitter_range`` falls or comes without ``crop_hw``.

    Source:
        Ghiasi et al., "Simple Copy-Paste", arXiv:2012.07177 (large-scale jitter).
    """

    @validate_call
    def __init__(
        self,
        *,
        short_sides_px: tuple[SidePx, ...] | None = None,
        max_long_side_px: SidePx = 1333,
        jitter_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None,
        crop_hw: tuple[SidePx, SidePx] | None = None,
        flip_probability: Ratio = 0.5,
        color_strength: Ratio = 0.0,
    ) -> None:
        steps: list[v2.Transform] = []
        if short_sides_px:
            steps.append(v2.RandomShortestSize(list(short_sides_px), max_long_side_px))
        if jitter_range is not None:
            if crop_hw is None:
                raise ValueError(f"jitter_range={jitter_range} needs crop_hw, the size it is relative to")
            if jitter_range[0] > jitter_range[1]:
                raise ValueError(f"jitter_range must rise, got {jitter_range}")
            steps.append(RandomScale(crop_hw, jitter_range))
        if crop_hw is not None:
            steps.append(RandomCropToFit(crop_hw))
        steps.append(RandomMirror(flip_probability))
        if color_strength:
            strengths = (color_strength, color_strength, color_strength, color_strength / 10)
            steps.append(v2.ColorJitter(*strengths))
        self._steps = v2.Compose(steps)

    def __call__(
        self, image: Tensor, target: dict[str, Any] | Target, outlines: Outlines | None = None
    ) -> tuple[Tensor, Target]:
        """Transform a sample.

        Args:
            image: uint8[3, H, W].
            target: with ``masks``, or without them where ``outlines`` are given.
            outlines: the outlines of the instances.

        Returns:
            float32[3, H', W'] in [0, 1] and its target. Instances of which nothing, or less than a pixel
            in width or height, is left are dropped; boxes and areas fit the masks again. ``ignore_boxes``
            move along.
        """
        return _apply(self._steps, image, target, outlines)


class EvalTransform:
    """Turn an image into float; its size stays, for the detector resizes, and no mask is drawn.

    What is scored against comes from the annotation file.
    """

    def __call__(
        self, image: Tensor, target: dict[str, Any], outlines: Outlines | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return float32[3, H, W] in [0, 1] and the target, as it came."""
        return VF.to_dtype(image, torch.float32, scale=True), target


class RandomScale(v2.ScaleJitter):
    """Scale an image at random, relative to the largest scale at which it fits into ``fit_hw``.

    torchvision's own holds the height against the width of a size that is not square.

    Args:
        fit_hw: ``(H, W)`` in pixels.
        jitter_range: least and largest factor.
    """

    def __init__(self, fit_hw: tuple[int, int], jitter_range: tuple[float, float]) -> None:
        super().__init__(fit_hw, jitter_range)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the new size."""
        sides = _image_sides(flat_inputs)
        fit = min(limit / side for side, limit in zip(sides, self.target_size, strict=True))
        low, high = self.scale_range
        scale = fit * (low + (high - low) * float(torch.rand(())))
        return {"size": tuple(max(1, round(side * scale)) for side in sides)}


class RandomCropToFit(v2.Transform):
    """Cut an image that is larger than ``crop_hw`` at a random place; a smaller side stays as it is.

    Args:
        crop_hw: largest ``(H, W)`` of the result, in pixels.
    """

    def __init__(self, crop_hw: tuple[int, int]) -> None:
        super().__init__()
        self.crop_hw = crop_hw

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        """Draw the upper left corner."""
        sides = _image_sides(flat_inputs)
        kept = [min(side, limit) for side, limit in zip(sides, self.crop_hw, strict=True)]
        corner = [int(torch.randint(side - k + 1, ())) for side, k in zip(sides, kept, strict=True)]
        return {"top": corner[0], "left": corner[1], "height": kept[0], "width": kept[1]}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        """Cut one of the inputs."""
        return VF.crop(inpt, **params)


class RandomMirror(v2.RandomHorizontalFlip):
    """Mirror left to right, polygons on the edges of pixels: ``x`` becomes ``W - x``.

    torchvision takes points for centres of pixels, ``x`` becomes ``W - 1 - x``, which would move every
    polygon by a pixel against its image.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Mirror one of the inputs."""
        mirrored = super().transform(inpt, params)
        if isinstance(inpt, tv_tensors.KeyPoints):
            moved = mirrored + torch.tensor([1.0, 0.0], dtype=inpt.dtype)
            return tv_tensors.wrap(moved, like=mirrored)
        return mirrored


def _image_sides(flat_inputs: list[Any]) -> list[int]:
    return VF.get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))


def _apply(
    steps: v2.Transform, image: Tensor, target: dict[str, Any] | Target, outlines: Outlines | None
) -> tuple[Tensor, Target]:
    size_hw = tuple(image.shape[1:])
    sample: dict[str, Any] = {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size_hw),
    }
    masked = {} if outlines is None else outlines.masks
    dense = torch.stack(list(masked.values())) if masked else target.get("masks")
    if dense is not None and len(dense):
        sample["masks"] = tv_tensors.Mask(dense)
    if len(target["ignore_boxes"]):
        sample["ignore_boxes"] = tv_tensors.BoundingBoxes(
            target["ignore_boxes"], format="XYXY", canvas_size=size_hw
        )
    if outlines is not None:
        sample["vertices"] = tv_tensors.KeyPoints(outlines.vertices, canvas_size=size_hw)

    sample = steps(sample)
    image = VF.to_dtype(sample["image"], torch.float32, scale=True).as_subclass(Tensor)
    moved = sample["masks"].as_subclass(Tensor) if "masks" in sample else None
    size_hw = tuple(image.shape[1:])
    if outlines is not None:
        masks = outlines.moved(
            sample["vertices"].as_subclass(Tensor),
            {} if moved is None else dict(zip(masked, moved, strict=True)),
        ).draw(size_hw)
    else:
        masks = torch.zeros((0, *size_hw), dtype=torch.uint8) if moved is None else moved
    changed = {"boxes": clip_boxes_to_image(sample["boxes"].as_subclass(Tensor), size_hw), "masks": masks}
    if "ignore_boxes" in sample:
        parts = clip_boxes_to_image(sample["ignore_boxes"].as_subclass(Tensor), size_hw)
        changed["ignore_boxes"] = parts[_is_large(parts)]
    return image, _refit(Target(**{**target, **changed}))


def _refit(target: Target) -> Target:
    """Fit boxes and areas to the masks and drop the instances of which too little is left, from every key."""
    masks = target["masks"]
    area = torch.from_numpy(mask_areas(masks.numpy())).float()
    boxes = _shrink_to_masks(target["boxes"], masks)
    keep = (area > 0) & _is_large(boxes)
    refitted = {**target, "boxes": boxes, "area": area}
    return keep_instances(Target(**refitted), keep)


def _is_large(boxes: Tensor) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) >= _MIN_BOX_SIDE_PX).all(dim=1)


def _shrink_to_masks(boxes: Tensor, masks: Tensor) -> Tensor:
    """Cut xyxy ``boxes`` float32[N, 4] back to at most one pixel around uint8[N, H, W] masks.

    A box that fits keeps its fractions of pixels; that of an instance which a crop has cut becomes tight
    again.
    """
    if not len(masks):
        return boxes
    around = []
    for dim in (1, 2):  # columns, then rows
        hit = masks.amax(dim=dim)  # [N, W], then [N, H]
        first, last = hit.argmax(dim=1), hit.shape[1] - hit.flip(1).argmax(dim=1)
        around.append((first - 1, last + 1))
    (x1, x2), (y1, y2) = around
    low = torch.maximum(boxes[:, :2], torch.stack([x1, y1], dim=1).float())
    high = torch.minimum(boxes[:, 2:], torch.stack([x2, y2], dim=1).float())
    return torch.cat([low, high], dim=1)
