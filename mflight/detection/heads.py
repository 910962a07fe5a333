"""What Mask R-CNN does with each region of interest: classify it, move its box, draw its mask.

torchvision's ``RoIHeads`` with two switches and a choice of the classification loss. With one box and one
mask a region, the detections of several classes on the same region share the work of the mask branch.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from mflight.detection.loss_weights import SyntheticLosses, weigh_rows
from mflight.detection.losses import ClassificationLoss
from mflight.detection.mask_targets import cut_masks
from mflight.detection.proposals import is_ignored
from mflight.detection.verification import Verification

_SMOOTH_L1_BETA = 1 / 9  # as in torchvision's fastrcnn_loss
_MIN_BOX_SIDE_PX = 1e-2
_CANDIDATES_PER_DETECTION = 16


class InstanceHeads(RoIHeads):
    """Box and mask branch with optional sharing of boxes and masks among the classes.

    In training: torchvision's losses, under its names. In evaluation each image gets ``boxes`` float32[N,
    4] in pixels of the resized image, ``labels`` int64[N], ``scores`` float32[N] falling, and ``roi_masks``
    float32[N, 1, M, M]: the probability of the object inside its box, not pasted into the image.

    Proposals inside a target's ``ignore_boxes`` that match no instance are not learnt from; without such
    boxes nothing changes.

    ``class_shift`` float32[C], where it is set, is added to the class logits in evaluation, see
    :class:`mflight.detection.prior_correction.PriorCorrection`.

    Where ``verification`` is set, regions on a synthetic instance that it does not confirm are not learnt
    from, and neither are those of the background that lie mostly inside of its box.

    Args:
        class_agnostic_boxes: one box a region, for all classes.
        class_agnostic_masks: one mask a region, for all classes.
        classification_loss: of the regions; it also turns their logits into scores.
        synthetic_losses: what is learnt from synthetic images.
        ignore_overlap: share of a proposal's own area from which it counts as inside, in (0, 1].
        **kwargs: the arguments of torchvision's ``RoIHeads``.
    """

    def __init__(
        self,
        *,
        class_agnostic_boxes: bool,
        class_agnostic_masks: bool,
        classification_loss: ClassificationLoss,
        synthetic_losses: SyntheticLosses,
        ignore_overlap: float = 0.5,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.synthetic_losses = synthetic_losses
        self.class_agnostic_boxes, self.class_agnostic_masks = class_agnostic_boxes, class_agnostic_masks
        self.classification_loss = classification_loss
        self.ignore_overlap = ignore_overlap
        self.verification: Verification | None = None
        self.class_shift: Tensor | None = None

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return ``([], losses)`` in training, ``(predictions, {})`` in evaluation."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._predictions(features, proposals, image_shapes), {}

    def select_training_samples(
        self, proposals: list[Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Sample the regions to learn from: proposals, matched instances, labels and offsets of each image.

        A proposal that is left out here is one that torchvision labels -1: it can never be sampled.
        """
        min_iou = self.proposal_matcher.high_threshold
        return super().select_training_samples(
            [self._without_ignored(*image, min_iou) for image in zip(proposals, targets, strict=True)],
            targets,
        )

    def _without_ignored(
        self, proposals: Tensor, target: Mapping[str, Tensor], min_iou: float, visible: Tensor | None = None
    ) -> Tensor:
        """Leave out the proposals that lie, or whose ``visible`` parts lie, inside of an ignored part."""
        inside = is_ignored(proposals if visible is None else visible, target, self.ignore_overlap)
        if inside is None:
            return proposals
        overlaps = box_iou(target["boxes"].to(proposals), proposals)  # [N, R]
        is_matched = (overlaps >= min_iou).any(dim=0)
        return proposals[is_matched | ~inside]

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]] | None,
    ) -> dict[str, Tensor]:
        all_targets = targets
        if self.verification is not None:
            targets = self.verification.found_only(targets, proposals)
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        logits, box_regression = self._box_branch(features, proposals, image_shapes)
        weights_of = partial(self.synthetic_losses.image_weights, targets)
        counts = [len(image_labels) for image_labels in labels]
        all_labels = torch.cat(labels)
        kept = None
        if self.verification is not None:
            scores = self.classification_loss.scores(logits.detach())
            doubted = self.verification.doubted(scores, labels, matched, targets)
            self.verification.count(all_targets, targets, doubted)
            kept = torch.cat(list(map(self._without_doubted, proposals, matched, labels, targets, doubted)))
        logits = weigh_rows(logits, weights_of("classification"), counts, kept)
        box_regression = weigh_rows(box_regression, weights_of("boxes"), counts, kept)

        mask_loss = self._learn_masks(features, proposals, matched, labels, targets, image_shapes, kept)
        return {
            "loss_classifier": self.classification_loss(logits, all_labels),
            "loss_box_reg": self._box_loss(box_regression, torch.cat(offsets), all_labels),
            "loss_mask": mask_loss,
        }

    def _learn_masks(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        matched: Sequence[Tensor],
        labels: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return the mask loss of the sampled regions, of which only those on an object count."""
        positive = [torch.where(image_labels > 0)[0] for image_labels in labels]
        proposals = [boxes[keep] for boxes, keep in zip(proposals, positive, strict=True)]
        matched = [index[keep] for index, keep in zip(matched, positive, strict=True)]
        channels = [self._mask_channel(t["labels"])[index] for t, index in zip(targets, matched, strict=True)]
        logits = self._mask_branch(features, proposals, channels, image_shapes)
        kept = None if kept is None else kept[torch.cat(labels) > 0]
        weights = self.synthetic_losses.image_weights(targets, "masks")
        logits = weigh_rows(logits, weights, [len(boxes) for boxes in proposals], kept)
        return self._mask_loss(logits, proposals, matched, targets)

    def _mask_loss(
        self,
        logits: Tensor,
        proposals: Sequence[Tensor],
        matched: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Binary cross entropy of the mask of each region on an object, against its instance cut to it."""
        if not len(logits):
            return logits.sum() * 0
        wanted = [
            self._wanted_masks(target["masks"], index, boxes, logits.shape[-1])
            for boxes, index, target in zip(proposals, matched, targets, strict=True)
        ]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(wanted))

    def _without_doubted(
        self,
        proposals: Tensor,
        matched: Tensor,
        labels: Tensor,
        target: Mapping[str, Tensor],
        doubted: Tensor,
    ) -> Tensor:
        """Return bool[R]: false on a doubted instance, and for the background inside of its box."""
        if not len(doubted):
            return torch.ones_like(labels, dtype=torch.bool)
        parts = {"ignore_boxes": target["boxes"][doubted]}
        inside = is_ignored(proposals, parts, self.ignore_overlap)
        is_out = torch.zeros_like(labels, dtype=torch.bool) if inside is None else inside
        return ~torch.where(labels > 0, doubted[matched], is_out)

    def _box_loss(self, box_regression: Tensor, offsets: Tensor, labels: Tensor) -> Tensor:
        """Smooth L1 over the regions on an object, divided by all sampled regions, as in Fast R-CNN."""
        positive = torch.where(labels > 0)[0]
        channel = torch.zeros_like(positive) if self.class_agnostic_boxes else labels[positive]
        predicted = box_regression.unflatten(1, (-1, 4))[positive, channel]  # [R+, 4]
        loss = F.smooth_l1_loss(predicted, offsets[positive], beta=_SMOOTH_L1_BETA, reduction="sum")
        return loss / max(1, labels.numel())

    def _wanted_masks(self, masks: Tensor, index: Tensor, boxes: Tensor, side: int) -> Tensor:
        return cut_masks(masks, index, boxes, side)

    def _predictions(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        boxes, scores = self._score_regions(features, proposals, image_shapes)
        found = [self._select(*image) for image in zip(boxes, scores, image_shapes, strict=True)]

        # detections of one region that share its box and its mask differ in class only: draw that mask once
        share = self.class_agnostic_boxes and self.class_agnostic_masks
        drawn = [
            _first_of_each(region if share else torch.arange(len(region), device=region.device))
            for _, region in found
        ]
        chosen = [(p, first) for (p, _), (first, _) in zip(found, drawn, strict=True)]
        mask_boxes = [p["boxes"][first] for p, first in chosen]
        mask_channels = [self._mask_channel(p["labels"][first]) for p, first in chosen]
        mask_logits = self._mask_branch(features, mask_boxes, mask_channels, image_shapes)
        roi_masks = mask_logits.sigmoid()[:, None].split([len(boxes) for boxes in mask_boxes])
        for (prediction, _), (_, index), masks in zip(found, drawn, roi_masks, strict=True):
            prediction["roi_masks"] = masks[index]
        return [prediction for prediction, _ in found]

    def _score_regions(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the boxes [R, 1 or C + 1, 4] and the scores [R, C] of each image."""
        logits, box_regression = self._box_branch(features, proposals, image_shapes)
        if self.class_shift is not None:
            logits = self.classification_loss.shift_classes(logits, self.class_shift)
        counts = [len(boxes) for boxes in proposals]
        decoded = self.box_coder.decode(box_regression, proposals)  # [0, 4] where no image has a proposal
        decoded = decoded.reshape(len(box_regression), box_regression.shape[1] // 4, 4)
        return decoded.split(counts), self.classification_loss.scores(logits).split(counts)

    def _select(
        self, boxes: Tensor, scores: Tensor, image_shape: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Turn ``boxes`` [R, 1 or C + 1, 4], ``scores`` [R, C] into detections and their regions."""
        region, column = torch.where(scores > self.score_thresh)
        score, label = scores[region, column], column + 1
        box = boxes[region, torch.zeros_like(label) if self.class_agnostic_boxes else label]
        box = clip_boxes_to_image(box, image_shape)
        large = ((box[:, 2:] - box[:, :2]) >= _MIN_BOX_SIDE_PX).all(dim=1)
        box, score, label, region = box[large], score[large], label[large], region[large]
        keep = best_after_nms(box, score, label, self.nms_thresh, self.detections_per_img)
        return {"boxes": box[keep], "labels": label[keep], "scores": score[keep]}, region[keep]

    def _mask_channel(self, labels: Tensor) -> Tensor:
        return torch.zeros_like(labels) if self.class_agnostic_masks else labels

    def _box_branch(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        logits, offsets = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))
        return logits.float(), offsets.float()  # losses and softmax in full precision under autocast

    def _mask_branch(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        channels: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        pooled = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        return self.mask_predictor(pooled, torch.cat(channels)).float()


def best_after_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, num_kept: int) -> Tensor:
    """Suppress non-maxima class by class, and stop once enough detections are kept.

    Whether a box is kept depends on those with higher scores only, so the best ``num_kept`` come out of a
    small share of the candidates: of 1000 regions x 1203 classes at the start of training, of a few thousand
    where 1.2 million are above the score threshold.

    Args:
        boxes: float32[N, 4], xyxy px.
        scores: float32[N].
        labels: int64[N]; boxes of different labels never suppress each other.
        threshold: IoU above which the weaker one is dropped.
        num_kept: detections wanted.

    Returns:
        int64, at most ``num_kept`` indices by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    num_looked_at = _CANDIDATES_PER_DETECTION * num_kept
    while True:
        head = order[:num_looked_at]
        kept = head[batched_nms(boxes[head], scores[head], labels[head], threshold)]
        if len(kept) >= num_kept or num_looked_at >= len(order):
            return kept[:num_kept]
        num_looked_at *= 4


def _first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a position of each distinct value, and for every element which of those values it has."""
    distinct, index = torch.unique(values, return_inverse=True)
    positions = torch.arange(len(values), device=values.device)
    return positions.new_zeros(len(distinct)).scatter_(0, index, positions), index
