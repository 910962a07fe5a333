"""Whether the detector, as it stands, sees a synthetic instance as what it was drawn for.

What it does not confirm is left out of the losses of a step: it is neither an object of its class nor
background. Nothing is remembered, so an instance counts again as soon as it is confirmed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import box_iou

_OF_INSTANCES = ("boxes", "labels", "masks")  # what a detector reads of a target


class Verification:
    """Confirms the instances of synthetic images by the proposals and scores that training computes anyway.

    An instance is found if a proposal has a box IoU of ``min_iou`` with it, and confirmed if, besides, one of
    the sampled regions on it (its own box among them) scores its class at ``min_score``. To the proposal
    network, which knows no classes, what was found is an object, confirmed or not.

    Args:
        min_iou: of box and proposal, in [0, 1].
        min_score: of the instance's class, in [0, 1].

    Source:
        Suri et al., "Gen2Det", arXiv:2312.04566 (IoU and score of a detector trained on real images filter
        the instances; here it is the detector in training).
    """

    def __init__(self, *, min_iou: float, min_score: float) -> None:
        self.min_iou, self.min_score = min_iou, min_score
        self._counts: Tensor | None = None

    def found_only(
        self, targets: Sequence[Mapping[str, Any]], proposals: Sequence[Tensor]
    ) -> list[Mapping[str, Any]]:
        """Return the targets without the synthetic instances that were not found.

        Args:
            targets: of a batch.
            proposals: float32[R, 4], xyxy px, of each image.

        Returns:
            The targets; the box of what is left out joins ``ignore_boxes``.
        """
        return [self._found_only(*image) for image in zip(targets, proposals, strict=True)]

    def doubted(
        self,
        scores: Tensor,
        labels: Sequence[Tensor],
        matched: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
    ) -> list[Tensor]:
        """Tell which instances that were found are not confirmed.

        Args:
            scores: float32[R, C] of the sampled regions of all images.
            labels: int64[R_i] of each image, 0 for the background.
            matched: int64[R_i] of each image, the instance that a region with a label lies on.
            targets: of the batch, from ``found_only``.

        Returns:
            bool[N] of each image; false for a real one, and where no region of an instance was sampled.
        """
        by_image = scores.split([len(own) for own in labels])
        return [self._doubted(*image) for image in zip(by_image, labels, matched, targets, strict=True)]

    def count(
        self, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], doubted: list[Tensor]
    ) -> None:
        """Count what a step judged and left out; nothing is read from the device."""
        judged = sum(len(target["boxes"]) for target in before if target.get("is_synthetic"))
        kept = sum(len(target["boxes"]) for target in after if target.get("is_synthetic"))
        left_out = torch.cat(doubted).sum() + (judged - kept)
        counts = torch.stack([torch.full_like(left_out, judged), left_out])
        self._counts = counts if self._counts is None else self._counts + counts

    def take_counts(self) -> Tensor:
        """Return int64[2], instances judged and left out since the last call."""
        counts, self._counts = self._counts, None
        return torch.zeros(2, dtype=torch.int64) if counts is None else counts

    def _found_only(self, target: Mapping[str, Any], proposals: Tensor) -> Mapping[str, Any]:
        boxes = target["boxes"]
        if not target.get("is_synthetic") or not len(boxes):
            return target
        found = (box_iou(boxes, proposals.to(boxes)) >= self.min_iou).any(dim=1)
        if found.all():
            return target
        parts = target.get("ignore_boxes", boxes[:0])
        kept = {key: target[key][found] for key in _OF_INSTANCES}
        return {**target, **kept, "ignore_boxes": torch.cat([parts, boxes[~found]])}

    def _doubted(self, scores: Tensor, labels: Tensor, matched: Tensor, target: Mapping[str, Any]) -> Tensor:
        best = own_scores(scores, labels, matched, num_instances=len(target["boxes"]))
        return (best < self.min_score) & bool(target.get("is_synthetic"))


def own_scores(scores: Tensor, labels: Tensor, matched: Tensor, *, num_instances: int) -> Tensor:
    """Return float32[N]: the best score of each instance's own class on the regions that lie on it.

    Args:
        scores: float32[R, C] of the regions of one image.
        labels: int64[R], what they should be, 0 for the background.
        matched: int64[R], the instance of each region with a label.
        num_instances: ``N``.

    Returns:
        the scores in [0, 1]; 1 where no region speaks of an instance.

    Example:
        >>> scores = torch.tensor([[0.7, 0.1], [0.2, 0.6], [0.9, 0.0]])
        >>> own_scores(scores, torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]), num_instances=2)
        tensor([0.7000, 1.0000])
    """
    on_object = labels > 0
    own = scores.gather(1, (labels - 1).clamp_min(0)[:, None])[:, 0][on_object]
    best = scores.new_zeros(num_instances).scatter_reduce(0, matched[on_object], own, "amax")
    is_spoken_of = torch.zeros_like(best, dtype=torch.bool)
    is_spoken_of[matched[on_object]] = True
    return torch.where(is_spoken_of, best, 1.0)


@torch.no_grad()
def judge_instances(
    detector: GeneralizedRCNN, image: Tensor, target: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Measure the instances of an image by what :class:`Verification` compares with its bounds.

    Args:
        detector: of ``build_mask_rcnn``, in evaluation.
        image: float32[3, H, W] in [0, 1].
        target: of the image.

    Returns:
        float32[N], the best box IoU of a proposal with each instance, 0 without proposals; and float32[N],
        the best score of its class on its own box and on the proposals that would be learnt from as it.
    """
    images, (target,) = detector.transform([image], [dict(target)])
    features, heads, boxes = detector.backbone(images.tensors), detector.roi_heads, target["boxes"]
    (proposals,), _ = detector.rpn(images, features)
    overlaps = F.pad(box_iou(boxes, proposals), (0, 1))  # [N, R + 1]: the last is no proposal
    if not len(boxes):
        return overlaps.sum(dim=1), overlaps.sum(dim=1)
    best, instance = overlaps[:, :-1].max(dim=0)
    is_on = best >= heads.proposal_matcher.high_threshold
    regions = torch.cat([boxes, proposals[is_on]])
    matched = torch.cat([torch.arange(len(boxes), device=instance.device), instance[is_on]])
    logits, _ = heads.box_predictor(
        heads.box_head(heads.box_roi_pool(features, [regions], images.image_sizes))
    )
    scores = heads.classification_loss.scores(logits.float())
    own = own_scores(scores, target["labels"][matched], matched, num_instances=len(boxes))
    return overlaps.amax(dim=1), own
