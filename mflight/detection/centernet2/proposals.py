"""The first stage of CenterNet2: likely centres of objects, and the boxes around them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms

from mflight.detection.detector import Proposals
from mflight.detection.loss_weights import SyntheticLosses, weigh_rows
from mflight.detection.losses import sum_over_ranks
from mflight.functional.centers import (
    CenterTargets,
    Locations,
    center_targets,
    decode_ltrb,
    heat_losses,
    ltrb_giou_losses,
    make_locations,
)

_INITIAL_STD = 0.01
_INITIAL_LTRB = 8.0  # in strides
_INITIAL_HEAT = 0.01
_NUM_GROUPS = 32
_MIN_HEAT = 1e-4  # of a proposal


class CenterHead(nn.Module):
    """Heat and box of each location, by convolutions that all levels share.

    Args:
        channels: of the features; a multiple of 32.
        num_levels: each has a scale of its own for its boxes.
        num_convs: of the tower.

    Raises:
        ValueError: if ``channels`` is no multiple of 32.
    """

    def __init__(self, channels: int, num_levels: int, num_convs: int = 4) -> None:
        super().__init__()
        if channels % _NUM_GROUPS:
            raise ValueError(f"backbone.out_channels must be a multiple of {_NUM_GROUPS}, got {channels}")
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(_NUM_GROUPS, channels)]
            layers.append(nn.ReLU(inplace=True))
        self.tower = nn.Sequential(*layers)
        self.box = nn.Conv2d(channels, 4, 3, padding=1)
        self.heat = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_INITIAL_STD)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.box.bias, _INITIAL_LTRB)
        nn.init.constant_(self.heat.bias, torch.tensor(_INITIAL_HEAT).logit().item())

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return of each level the heat's logits, float32[B, 1, h, w], and ltrb, float32[B, 4, h, w]."""
        logits, ltrb = [], []
        for features, scale in zip(levels, self.scales, strict=True):
            features = self.tower(features)
            logits.append(self.heat(features).float())
            ltrb.append((scale * self.box(features).float()).relu())
        return logits, ltrb


class Number(NamedTuple):
    """How many proposals there are at most.

    Attributes:
        per_level: before suppression.
        per_image: after it.
    """

    per_level: int
    per_image: int


class CenterProposals(nn.Module):
    """Proposes the boxes around likely centres; a location knows no classes.

    A location inside a target's ``ignore_boxes`` that lies on no centre is neither background nor learns a
    box. The losses are divided by the number of centres, and of boxes, in the mean over the ranks.

    Args:
        head: of the locations.
        strides: px of the first ``L`` levels that the backbone returns, whose names do not matter.
        synthetic_losses: what is learnt from synthetic images.
        num_training: proposals in training.
        num_evaluation: proposals in evaluation.
        nms_thresh: box IoU above which the less likely of two boxes is dropped.
    """

    def __init__(
        self,
        *,
        head: CenterHead,
        strides: Sequence[int],
        synthetic_losses: SyntheticLosses,
        num_training: Number,
        num_evaluation: Number,
        nms_thresh: float = 0.9,
    ) -> None:
        super().__init__()
        self.head, self.strides, self.synthetic_losses = head, tuple(strides), synthetic_losses
        self.num_training, self.num_evaluation, self.nms_thresh = num_training, num_evaluation, nms_thresh

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Return the proposals and, in training, ``center_object``, ``center_background``, ``center_box``."""
        logits, ltrb = self.head(list(features.values()))
        locations = make_locations([level.shape[-2:] for level in logits], self.strides, logits[0])
        all_logits = torch.cat([level.flatten(1) for level in logits], dim=1)  # [B, M]
        all_ltrb = torch.cat([level.flatten(2).mT for level in ltrb], dim=1)  # [B, M, 4]
        proposals = self.propose(all_logits.detach(), all_ltrb.detach(), locations)
        if not self.training:
            return proposals, {}
        return proposals, self.losses(all_logits, all_ltrb, locations, targets)

    @torch.no_grad()
    def propose(self, logits: Tensor, ltrb: Tensor, locations: Locations) -> Proposals:
        """Return the best boxes of each image by falling score, the root of the heat; they are not clipped.

        Args:
            logits: float32[B, M].
            ltrb: float32[B, M, 4] in strides.
            locations: of an image.

        Returns:
            the proposals.
        """
        number = self.num_training if self.training else self.num_evaluation
        found = [self._propose(*image, locations, number) for image in zip(logits, ltrb, strict=True)]
        return Proposals(*map(list, zip(*found, strict=True)))

    def _propose(
        self, logits: Tensor, ltrb: Tensor, locations: Locations, number: Number
    ) -> tuple[Tensor, Tensor]:
        chosen = []
        for level, heat in enumerate(locations.split(logits.sigmoid()[:, None])):
            best, index = heat[:, 0].topk(min(number.per_level, len(heat)))
            chosen.append(torch.where(locations.levels == level)[0][index[best > _MIN_HEAT]])
        index = torch.cat(chosen)
        boxes = decode_ltrb(locations.centers[index], locations.strides[index], ltrb[index])
        scores = logits[index].sigmoid().sqrt()
        kept = nms(boxes, scores, self.nms_thresh)
        if len(kept) > number.per_image:  # those as good as the last one stay as well
            kept = kept[scores[kept] >= scores[kept[number.per_image - 1]]]
        return boxes[kept], scores[kept]

    def losses(
        self,
        logits: Tensor,
        ltrb: Tensor,
        locations: Locations,
        targets: Sequence[Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the losses by name.

        Args:
            logits: float32[B, M].
            ltrb: float32[B, M, 4] in strides.
            locations: of an image.
            targets: of the batch.

        Returns:
            three scalars.
        """
        wanted = [center_targets(target["boxes"].to(ltrb), locations) for target in targets]
        left_out = torch.cat([_left_out(*image, locations) for image in zip(wanted, targets, strict=True)])
        num = logits.shape[1]
        positives = torch.cat([image.positives + first * num for first, image in enumerate(wanted)])
        weights = self.synthetic_losses.image_weights(targets, "proposals")
        counts = [num] * len(wanted)
        flat_logits, flat_ltrb = (
            weigh_rows(rows, weights, counts) for rows in (logits.flatten(), ltrb.flatten(0, 1))
        )
        heat = torch.cat([image.heat for image in wanted])
        on_object, background = heat_losses(flat_logits, heat, positives, left_out)
        has_box = torch.cat([image.has_box for image in wanted]) & ~left_out
        boxes = torch.cat([image.ltrb for image in wanted])
        away = ltrb_giou_losses(flat_ltrb[has_box], boxes[has_box])
        num_positives, num_boxes = _mean_over_ranks(
            has_box.new_tensor(len(positives), dtype=torch.float32), has_box.sum().float()
        )
        return {
            "center_object": on_object / num_positives,
            "center_background": background / num_positives,
            "center_box": away.sum() / num_boxes,
        }


def _left_out(wanted: CenterTargets, target: Mapping[str, Tensor], locations: Locations) -> Tensor:
    """Return bool[M]: the locations inside of an ignored part, but those on a centre."""
    x, y = locations.centers.unbind(dim=1)
    parts = target.get("ignore_boxes")
    if parts is None or not len(parts):
        return torch.zeros_like(wanted.has_box)
    x1, y1, x2, y2 = parts.to(x).T[..., None]
    inside = ((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)).any(dim=0)
    inside[wanted.positives] = False
    return inside


def _mean_over_ranks(*counts: Tensor) -> list[Tensor]:
    """Return each count in the mean over the ranks, at least 1."""
    num_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return [(count / num_ranks).clamp(min=1.0) for count in sum_over_ranks(*counts)]
