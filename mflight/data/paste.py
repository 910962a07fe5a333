"""Paste instances into an image: what they cover is updated or removed, boxes fit the masks again."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from mflight.data.target import INSTANCE_KEYS, Target
from mflight.functional.masks import mask_to_box, resize_mask


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
    area, whole = masks.sum(dim=(1, 2)), patch.masks.sum(dim=(1, 2))
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
    masks = target["masks"].clone()
    before = masks.sum(dim=(1, 2))
    masks[(slice(None), *here)] *= 1 - cover
    area = masks.sum(dim=(1, 2))
    is_touched = area < before
    keep = ~is_touched | ((area >= min_area_px) & (area >= min_visible_ratio * before))
    boxes = target["boxes"].clone()
    for index in torch.nonzero(is_touched & (area > 0))[:, 0].tolist():
        boxes[index] = torch.tensor(mask_to_box(masks[index].numpy()), dtype=boxes.dtype)
    is_rest = ~keep & (area > 0)
    areas = torch.where(is_touched, area.to(target["area"].dtype), target["area"])
    changed = {**target, "masks": masks, "boxes": boxes, "area": areas}
    changed |= {key: changed[key][keep] for key in INSTANCE_KEYS}
    changed["ignore_boxes"] = torch.cat([target["ignore_boxes"], boxes[is_rest]])
    lost = torch.cat([target["not_exhaustive_labels"], target["labels"][is_rest]])
    return Target(**{**changed, "not_exhaustive_labels": lost.unique()})


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
        "area": masks.sum(dim=(1, 2)).to(target["area"].dtype),
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
