"""Paste instances into an image: what they cover is updated or removed, boxes fit the masks again."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from mflight.data.target import INSTANCE_KEYS, Target, keep_instances
from mflight.functional.masks import mask_areas, mask_to_box, resize_mask


@dataclass(frozen=True)
class Patch:
    """A part of an image with the instances to be pasted, as RGB and masks.

    Attributes:
        image: float32[3, h, w] in [0, 1].
        masks: uint8[K, h, w] of 0 and 1; what none of them covers is not pasted.
        labels: int64[K] in ``1..C``.
    """

    image: Tensor
    masks: Tensor
    labels: Tensor

    def resized(self, size_hw: tuple[int, int]) -> "Patch":
        """Return it at another size; a pixel is object where at least half of the area it covers was."""
        if tuple(self.image.shape[1:]) == tuple(size_hw):
            return self
        masks = [torch.from_numpy(resize_mask(mask.numpy(), size_hw)).to(torch.uint8) for mask in self.masks]
        return Patch(VF.resize(self.image, list(size_hw), antialias=True), torch.stack(masks), self.labels)

    def mirrored(self) -> "Patch":
        """Return it mirrored left to right."""
        return replace(self, image=self.image.flip(-1), masks=self.masks.flip(-1))


def cut_patch(image: Tensor, mask: Tensor, label: Tensor, margin_px: int = 0) -> Patch:
    """Cut one instance out of its image.

    Args:
        image: float32[3, H, W] in [0, 1].
        mask: uint8[H, W] with at least one pixel of object.
        label: int64[], in ``1..C``.
        margin_px: width of the image's border to keep around the mask, for a soft edge.

    Returns:
        The part of the image around the mask.
    """
    x1, y1, x2, y2 = mask_to_box(mask.numpy())
    rows = slice(max(0, y1 - margin_px), y2 + margin_px)
    columns = slice(max(0, x1 - margin_px), x2 + margin_px)
    return Patch(image[:, rows, columns], mask[None, rows, columns], label.reshape(1))


def paste_patch(
    image: Tensor,
    target: Target,
    patch: Patch,
    corner_xy: tuple[int, int],
    *,
    min_visible_ratio: float = 0.1,
    min_area_px: int = 32,
    feather_px: float = 0.0,
) -> tuple[Tensor, Target]:
    """Paste the instances of a patch over an image.

    Args:
        image: float32[3, H, W] in [0, 1].
        target: of the image.
        patch: what is pasted; parts of it outside of the image are cut off.
        corner_xy: where its upper left corner comes to lie in the image, in pixels; may be negative.
        min_visible_ratio: an instance, pasted or covered, stays if at least this share of it is left, in
            [0, 1],
        min_area_px: and at least this area, in pixels.
        feather_px: standard deviation of the soft edge between both images, in pixels; 0 is a hard edge.

    Returns:
        A new image and target; the pasted instances come last. Masks lose what is covered, and covered
        instances get a tight box. Where too little of one is left it is removed, and its rest joins
        ``ignore_boxes``, its class ``not_exhaustive_labels``. A pasted class is no longer negative; where it
        was neither that nor labelled exhaustively, it is not exhaustive: others of it may be in the image.

    Source:
        Ghiasi et al., "Simple Copy-Paste", arXiv:2012.07177, section 3; the rest and the federated labels are
        mflight's own.
    """
    window = _overlap(image.shape[1:], patch.image.shape[1:], corner_xy)
    if window is None:
        return image, target
    here, there = window
    masks = patch.masks[(slice(None), *there)]
    area, whole = _areas(masks), _areas(patch.masks)
    stays = (area >= min_area_px) & (area >= min_visible_ratio * whole)
    masks, labels = masks[stays], patch.labels[stays]
    if not len(masks):
        return image, target
    cover = masks.amax(dim=0)
    image = image.clone()
    alpha = _feather(cover, feather_px)
    image[(slice(None), *here)] += alpha * (patch.image[(slice(None), *there)] - image[(slice(None), *here)])
    target = _cover(target, cover, here, min_visible_ratio, min_area_px)
    return image, _append(target, masks, labels, here)


def _overlap(
    size_hw: tuple[int, int], patch_hw: tuple[int, int], corner_xy: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Return rows and columns of the part that both share, in the image and in the patch."""
    here, there = [], []
    for side, patch_side, start in zip(size_hw, patch_hw, corner_xy[::-1], strict=True):
        first, last = max(0, start), min(side, start + patch_side)
        if first >= last:
            return None
        here.append(slice(first, last))
        there.append(slice(first - start, last - start))
    return tuple(here), tuple(there)


def _feather(cover: Tensor, feather_px: float) -> Tensor:
    alpha = cover[None].float()
    if feather_px == 0:
        return alpha
    return VF.gaussian_blur(alpha, [2 * round(2 * feather_px) + 1] * 2, [feather_px] * 2)


def _cover(
    target: Target, cover: Tensor, here: tuple[slice, slice], min_visible_ratio: float, min_area_px: int
) -> Target:
    """Take the covered pixels from every mask and drop the instances of which too little is left."""
    masks, boxes = target["masks"].clone(), target["boxes"].clone()
    part = masks[(slice(None), *here)]
    lost = torch.zeros(len(masks), dtype=torch.int64)
    for index in torch.nonzero(_may_meet(boxes, here))[:, 0].tolist():
        covered = part[index] & cover
        lost[index] = np.count_nonzero(covered.numpy())
        part[index] -= covered
    is_touched = lost > 0
    area = torch.zeros_like(lost)
    area[is_touched] = _areas(masks[is_touched])
    is_enough = (area >= min_area_px) & (area >= min_visible_ratio * (area + lost))
    for index in torch.nonzero(is_touched & (area > 0))[:, 0].tolist():
        boxes[index] = torch.tensor(mask_to_box(masks[index].numpy()), dtype=boxes.dtype)
    is_rest = is_touched & ~is_enough & (area > 0)
    areas = torch.where(is_touched, area.to(target["area"].dtype), target["area"])
    changed = {**target, "masks": masks, "boxes": boxes, "area": areas}
    changed["ignore_boxes"] = torch.cat([target["ignore_boxes"], boxes[is_rest]])
    unlabelled = torch.cat([target["not_exhaustive_labels"], target["labels"][is_rest]])
    changed["not_exhaustive_labels"] = unlabelled.unique()
    return keep_instances(Target(**changed), ~is_touched | is_enough)


def _may_meet(boxes: Tensor, here: tuple[slice, slice]) -> Tensor:
    """Tell which xyxy boxes reach into a window; a mask reaches out of its box by less than a pixel."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    rows, columns = here
    beside = (x2 < columns.start - 1) | (x1 > columns.stop + 1)
    return ~(beside | (y2 < rows.start - 1) | (y1 > rows.stop + 1))


def _areas(masks: Tensor) -> Tensor:
    return torch.from_numpy(mask_areas(masks.numpy()))


def _append(target: Target, masks: Tensor, labels: Tensor, here: tuple[slice, slice]) -> Target:
    whole = torch.zeros((len(masks), *target["masks"].shape[1:]), dtype=torch.uint8)
    whole[(slice(None), *here)] = masks
    boxes = torch.tensor([mask_to_box(mask.numpy()) for mask in whole], dtype=torch.float32)
    listed, negative = target["not_exhaustive_labels"], target["negative_labels"]
    is_known = torch.isin(labels, negative) | torch.isin(labels, target["labels"])
    added = {
        "boxes": boxes,
        "labels": labels,
        "masks": whole,
        "area": _areas(masks).to(target["area"].dtype),
        "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
    }
    return Target(
        **{
            **target,
            **{key: torch.cat([target[key], added[key]]) for key in INSTANCE_KEYS},
            "negative_labels": negative[~torch.isin(negative, labels)],
            "not_exhaustive_labels": torch.cat([listed, labels[~is_known]]).unique(),
        }
    )
