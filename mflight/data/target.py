"""What one labelled image is: the target handed to the detector, and the rules it keeps.

Shape letters, the same in the whole package: ``B`` batch, ``N`` instances, ``M`` parts to ignore,
``K`` listed labels, ``C`` classes, ``(H, W)`` image, ``(h, w)`` latent grid, ``S`` UNet resolutions,
``R`` regions, ``T`` tokens.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

INSTANCE_KEYS = ("boxes", "labels", "masks", "area", "iscrowd")
"""The keys whose first dimension is ``N``: whoever drops an instance drops it from all of these."""


class Target(TypedDict):
    """Ground truth of one image: torchvision's Mask R-CNN contract and what LVIS adds to it.

    Attributes:
        boxes: float32[N, 4], xyxy in pixels, ``0 <= x1 < x2 <= W`` and ``0 <= y1 < y2 <= H``.
        labels: int64[N] in ``1..C``; 0 is the background.
        masks: uint8[N, H, W] of 0 and 1.
        image_id: the id of the image in its annotation file.
        area: float32[N], in square pixels.
        iscrowd: int64[N] of 0 and 1.
        is_synthetic: whether a generator drew the image.
        negative_labels: int64[K], classes verified to be absent; in an image that is labelled exhaustively,
            as COCO's are, all that it does not show.
        not_exhaustive_labels: int64[K], classes of which not every instance is outlined.
        ignore_boxes: float32[M, 4], xyxy in pixels, bounds as for ``boxes``: parts of the image that may show
            objects without a label; what is found there is no false alarm. Real images have none.
        sample_id: name of a synthetic sample in its pool, empty for a real image.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    image_id: int
    area: Tensor
    iscrowd: Tensor
    is_synthetic: bool
    negative_labels: Tensor
    not_exhaustive_labels: Tensor
    ignore_boxes: Tensor
    sample_id: str


def keep_instances(target: Target, keep: Tensor) -> Target:
    """Return the target with the instances where bool[N] ``keep`` is true; copies nothing if all stay."""
    if keep.all():
        return target
    return Target(**{**target, **{key: target[key][keep] for key in INSTANCE_KEYS}})


def check_target(target: Mapping[str, Any], size_hw: tuple[int, int], num_classes: int) -> None:
    """Raise unless ``target`` keeps every rule of :class:`Target`.

    Args:
        target: the mapping to check.
        size_hw: ``(H, W)`` of the image it belongs to, in pixels.
        num_classes: ``C``, without the background.

    Raises:
        KeyError: if a key is missing.
        ValueError: if a shape, a dtype, a box, a label or a mask breaks its rule.
    """
    missing = [key for key in Target.__annotations__ if key not in target]
    if missing:
        raise KeyError(f"the target of image {target.get('image_id', '?')} lacks the keys {missing}")
    place = f"the target of image {target['image_id']}"
    _check_shapes(target, size_hw, place)
    for key in ("boxes", "ignore_boxes"):
        _check_boxes(key, target[key], size_hw, place)
    for key in ("labels", "negative_labels", "not_exhaustive_labels"):
        labels = target[key]
        if len(labels) and not (1 <= labels.min() and labels.max() <= num_classes):
            found = sorted({int(v) for v in labels if not 1 <= v <= num_classes})
            raise ValueError(f"{key} must lie in 1..{num_classes}, got {found} in {place}")
    if len(target["masks"]) and target["masks"].max() > 1:
        raise ValueError(f"masks must hold 0 and 1 only, got {int(target['masks'].max())} in {place}")


def _check_shapes(target: Mapping[str, Any], size_hw: tuple[int, int], place: str) -> None:
    count = len(target["labels"])
    expected = {
        "boxes": ((count, 4), torch.float32),
        "labels": ((count,), torch.int64),
        "masks": ((count, *size_hw), torch.uint8),
        "area": ((count,), torch.float32),
        "iscrowd": ((count,), torch.int64),
        "negative_labels": ((len(target["negative_labels"]),), torch.int64),
        "not_exhaustive_labels": ((len(target["not_exhaustive_labels"]),), torch.int64),
        "ignore_boxes": ((len(target["ignore_boxes"]), 4), torch.float32),
    }
    for key, (shape, dtype) in expected.items():
        found = target[key]
        if tuple(found.shape) != shape or found.dtype != dtype:
            got = f"{found.dtype} of shape {tuple(found.shape)}"
            raise ValueError(f"{key} must be {dtype} of shape {shape}, got {got} in {place}")


def _check_boxes(key: str, boxes: Tensor, size_hw: tuple[int, int], place: str) -> None:
    height, width = size_hw
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    good = (0 <= x1) & (x1 < x2) & (x2 <= width) & (0 <= y1) & (y1 < y2) & (y2 <= height)
    if not good.all():
        worst = boxes[~good][0].tolist()
        rule = f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}"
        raise ValueError(f"{key} must keep {rule}, got {worst} in {place}")
