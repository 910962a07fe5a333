"""The region proposal network, and which boxes the losses leave out.

A target's ``ignore_boxes`` are parts of an image that may show objects without a label. A box that lies
mostly inside of one and matches no instance is neither right nor wrong, so no loss may call it background.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import clip_boxes_to_image

from mflight.detection.loss_weights import SyntheticLosses, weigh_rows
from mflight.detection.verification import Verification


class FullPrecisionAnchors(AnchorGenerator):
    """torchvision's anchors, in float32 whatever the features are.

    Under ``bf16-mixed`` torchvision's take on the features' bfloat16, in which a coordinate of 1000 px is
    rounded to 4 px, and every proposal is moved by as much.
    """

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the anchors of one cell to the device."""
        super().set_cell_anchors(torch.float32, device)


class ProposalHead(RPNHead):
    """torchvision's head, whose outputs are float32 under autocast too."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each level objectness float32[B, A, h, w] and offsets float32[B, 4 A, h, w]."""
        objectness, offsets = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in offsets]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's network, whose loss leaves out the anchors inside the targets' ``ignore_boxes``.

    Targets without that key, or with an empty one, give torchvision's numbers to the bit.
    ``image_sizes`` holds ``(H, W)`` in px of the batch at hand, padding left out. Where ``verification`` is
    set, a synthetic instance without a proposal on it is left out as well, with the anchors inside of it.

    Args:
        synthetic_losses: what is learnt from synthetic images.
        ignore_overlap: share of an anchor's area in the image from which it counts as inside, in (0, 1].
        **kwargs: the arguments of torchvision's ``RegionProposalNetwork``.
    """

    def __init__(
        self, *, synthetic_losses: SyntheticLosses, ignore_overlap: float = 0.5, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.ignore_overlap, self.synthetic_losses = ignore_overlap, synthetic_losses
        self.image_weights: tuple[float, ...] | None = None
        self.image_sizes: list[tuple[int, int]] = []
        self.verification: Verification | None = None
        self._proposals: list[Tensor] = []

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the proposals of each image and, in training, the losses; as torchvision's network does."""
        self.image_sizes = images.image_sizes
        return super().forward(images, features, targets)

    def filter_proposals(self, *args: object) -> tuple[list[Tensor], list[Tensor]]:
        """Return the proposals of each image and their scores; as torchvision's network does."""
        self._proposals, scores = super().filter_proposals(*args)
        return self._proposals, scores

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each image the labels of its anchors (1, 0, or -1 for left out) and their boxes."""
        if self.verification is not None:
            targets = self.verification.found_only(targets, self._proposals)
        labels, matched_boxes = super().assign_targets_to_anchors(anchors, targets)
        self.image_weights = self.synthetic_losses.image_weights(targets, "proposals")
        for image_labels, image_anchors, target, size_hw in zip(
            labels, anchors, targets, self.image_sizes, strict=True
        ):
            visible = clip_boxes_to_image(image_anchors, size_hw)  # as proposals are, which are sampled later
            inside = is_ignored(visible, target, self.ignore_overlap)
            if inside is not None:
                image_labels[inside & (image_labels == 0)] = -1.0
        return labels, matched_boxes

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return objectness and box loss; both are 0 where every anchor is left out, not 0 / 0."""
        if all((image_labels < 0).all() for image_labels in labels):
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        counts = [len(image_labels) for image_labels in labels]
        objectness, pred_bbox_deltas = (
            weigh_rows(rows, self.image_weights, counts) for rows in (objectness, pred_bbox_deltas)
        )
        return super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)


def is_ignored(boxes: Tensor, target: Mapping[str, Tensor], overlap: float) -> Tensor | None:
    """Tell which boxes lie mostly inside of a part that the losses leave out.

    Args:
        boxes: float[R, 4], xyxy px.
        target: with or without ``ignore_boxes`` float32[M, 4], xyxy px.
        overlap: share of a box's own area that one of the parts must cover, in (0, 1].

    Returns:
        bool[R], false for a box without area; or ``None`` where the target has no such part.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 4, 4], [3.0, 0, 7, 4]])
        >>> is_ignored(boxes, {"ignore_boxes": torch.tensor([[0.0, 0, 4, 8]])}, overlap=0.5)
        tensor([ True, False])
    """
    parts = target.get("ignore_boxes")
    if parts is None or not len(parts):
        return None
    parts = parts.to(boxes)
    low = torch.maximum(boxes[:, None, :2], parts[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], parts[None, :, 2:])
    shared_area = (high - low).clamp(min=0).prod(dim=2)  # [R, M]
    own_area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return (shared_area >= overlap * own_area[:, None]).any(dim=1) & (own_area > 0)
