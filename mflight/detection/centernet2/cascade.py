"""The second stage of CenterNet2: three box branches in a row, each on the boxes of the one before."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image, roi_align

from mflight.detection.detector import Proposals
from mflight.detection.heads import InstanceHeads
from mflight.detection.loss_weights import weigh_rows

_MIN_IOUS = (0.6, 0.7, 0.8)
NUM_STAGES = len(_MIN_IOUS)
_CODER_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
_MIN_CELL_SHARE = 0.5  # of an object in a cell of its mask, from which on the cell is wanted

Regions = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Boxes float32[R, 4], matched instances int64[R] and labels int64[R] (0: background) of each image."""


class RegionPool(nn.Module):
    """Pools a region from the level that fits its size, with exact corners.

    torchvision's ``MultiScaleRoIAlign`` reads half a cell off (``aligned=False``), which weights trained by
    detectron2 do not fit.

    Args:
        side: cells a side of the output.
        strides: px of the first levels of the backbone, powers of two; a region of 224 px belongs to 16.
        sampling_ratio: points a side of each cell; 0 takes as many as there are features.
    """

    def __init__(self, side: int, *, strides: Sequence[int], sampling_ratio: int) -> None:
        super().__init__()
        self.side, self.strides, self.sampling_ratio = side, tuple(strides), sampling_ratio

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: object = None
    ) -> Tensor:
        """Return float32[R, C, side, side] of the boxes of all images; their order is kept."""
        images = torch.cat([torch.full_like(own[:, :1], number) for number, own in enumerate(boxes)])
        rois = torch.cat([images, torch.cat(list(boxes))], dim=1)  # [R, 5]
        sides = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=0).sqrt()
        first, last = (int(math.log2(stride)) for stride in (self.strides[0], self.strides[-1]))
        level_of = torch.floor(4 + torch.log2(sides / 224 + 1e-8)).clamp(first, last).long() - first
        levels = list(features.values())[: len(self.strides)]
        pooled = rois.new_zeros(len(rois), levels[0].shape[1], self.side, self.side)
        for number, (level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            own = torch.where(level_of == number)[0]
            cells = roi_align(
                *(level.float(), rois[own], self.side),
                spatial_scale=1 / stride,
                sampling_ratio=self.sampling_ratio,
                aligned=True,
            )
            pooled = pooled.index_put((own,), cells)
        return pooled


class CascadeHeads(InstanceHeads):
    """Three box branches, and a mask branch on the regions of the first; boxes and masks know no classes.

    In training: losses ``class_0`` to ``class_2``, ``box_0`` to ``box_2`` and ``mask``. A region inside a
    target's ``ignore_boxes`` is left out of each stage in which it matches no instance. The score of a class
    is the root of its mean score over the stages times that of the proposal.

    Args:
        box_heads: of each stage, features [R, C, side, side] to vectors.
        box_predictors: of each stage, vectors to class logits and box offsets.
        **kwargs: of :class:`mflight.detection.heads.InstanceHeads`.
    """

    def __init__(
        self, *, box_heads: Sequence[nn.Module], box_predictors: Sequence[nn.Module], **kwargs: object
    ) -> None:
        super().__init__(
            class_agnostic_boxes=True,
            class_agnostic_masks=True,
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            fg_iou_thresh=_MIN_IOUS[0],
            bg_iou_thresh=_MIN_IOUS[0],
            bbox_reg_weights=_CODER_WEIGHTS[0],
            **kwargs,
        )
        self.box_coders = [BoxCoder(weights) for weights in _CODER_WEIGHTS]

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: Proposals,
        image_shapes: list[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        learnable = [
            self._without_ignored(own, target, _MIN_IOUS[0], visible=clip_boxes_to_image(own, size_hw))
            for own, target, size_hw in zip(proposals.boxes, targets, image_shapes, strict=True)
        ]
        *sampled, _ = self.select_training_samples(learnable, targets)
        weights_of = partial(self.synthetic_losses.image_weights, targets)
        regions, losses = tuple(sampled), {}
        for stage, coder in enumerate(self.box_coders):
            boxes, matched, labels = regions
            counts = [len(own) for own in boxes]
            logits, offsets = self._stage(stage, features, boxes)
            on_object = torch.cat(labels) > 0
            all_boxes = torch.cat(boxes)
            wanted = [
                target["boxes"].to(all_boxes)[index[own > 0]]
                for target, index, own in zip(targets, matched, labels, strict=True)
            ]
            wanted = coder.encode_single(torch.cat(wanted), all_boxes[on_object])
            logits = weigh_rows(logits, weights_of("classification"), counts)
            learnt = weigh_rows(offsets, weights_of("boxes"), counts)[on_object]
            losses[f"class_{stage}"] = self.classification_loss(logits, torch.cat(labels))
            losses[f"box_{stage}"] = F.l1_loss(learnt, wanted, reduction="sum") / max(1, len(offsets))
            if stage + 1 < NUM_STAGES:
                moved = _moved(coder, offsets, boxes, image_shapes)
                regions = self._match(moved, targets, _MIN_IOUS[stage + 1])
        losses["mask"] = self._learn_masks(features, *sampled, targets, image_shapes)
        return losses

    def _match(
        self, boxes: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], min_iou: float
    ) -> Regions:
        """Match the boxes of a stage anew, without those that have no area and those to be ignored."""
        found = []
        for own, target in zip(boxes, targets, strict=True):
            own = own[(own[:, 2:] > own[:, :2]).all(dim=1)]
            own = self._without_ignored(own, target, min_iou)
            matched = labels = torch.zeros(len(own), dtype=torch.int64, device=own.device)
            if len(target["boxes"]):
                best, matched = box_iou(target["boxes"].to(own), own).max(dim=0)
                labels = torch.where(best >= min_iou, target["labels"][matched], 0)
            found.append((own, matched, labels))
        return tuple(map(list, zip(*found, strict=True)))

    def _stage(
        self, stage: int, features: dict[str, Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return logits [R, C] and offsets [R, 4]; the stages share their gradient into the features."""
        pooled = self.box_roi_pool(features, boxes)
        pooled = weigh_rows(pooled, (1 / NUM_STAGES,), [len(pooled)])
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _wanted_masks(self, *args: object) -> Tensor:
        return (super()._wanted_masks(*args) >= _MIN_CELL_SHARE).float()

    def _score_regions(
        self, features: dict[str, Tensor], proposals: Proposals, image_shapes: list[tuple[int, int]]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        boxes, scores = proposals.boxes, 0.0
        for stage, coder in enumerate(self.box_coders):
            logits, offsets = self._stage(stage, features, boxes)
            if self.class_shift is not None:
                logits = self.classification_loss.shift_classes(logits, self.class_shift)
            scores = scores + self.classification_loss.scores(logits)
            boxes = _moved(coder, offsets, boxes, image_shapes)
        mean = scores * (1 / NUM_STAGES)
        scores = (mean * torch.cat(proposals.scores)[:, None]).sqrt()
        return [own[:, None] for own in boxes], scores.split([len(own) for own in boxes])


def _moved(
    coder: BoxCoder, offsets: Tensor, boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Return the boxes of each image moved by offsets [R, 4], clipped to the image, without a gradient."""
    moved = coder.decode_single(offsets.detach(), torch.cat(list(boxes)))
    by_image = moved.split([len(own) for own in boxes])
    return [clip_boxes_to_image(*image) for image in zip(by_image, image_shapes, strict=True)]
