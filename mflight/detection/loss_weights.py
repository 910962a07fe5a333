"""What is learnt from synthetic images, whatever the loss: the gradient of their rows is scaled.

A loss that is a sum over rows, divided by a number that does not depend on them, has for each row a gradient
of its own; scaling it is the same as weighting the row, and 0 leaves it out. The values of the losses stay as
they are, so that figures of runs with different weights can be compared, and no parameter goes without a
gradient, as DDP demands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

LossName = Literal["classification", "boxes", "masks", "proposals"]
LOSS_NAMES: tuple[LossName, ...] = get_args(LossName)


@dataclass(frozen=True)
class SyntheticLosses:
    """How much a detector learns from synthetic images, and by which of its losses.

    Attributes:
        weight: of a synthetic image in the gradient, >= 0; a real image's is 1.
        losses: those by which it is learnt from at all: of the regions' classes, boxes and masks, and of the
            ``proposals`` (objectness and boxes together). The others take nothing from it. What losses count
            beside (classes seen, sums of gradients: seesaw, EQLv2) includes synthetic images all the same.
    """

    weight: float = 1.0
    losses: tuple[LossName, ...] = LOSS_NAMES

    def image_weights(self, targets: Sequence[Mapping[str, Any]], loss: LossName) -> tuple[float, ...] | None:
        """Return the weight of each image in a loss, or None where all weigh 1.

        Args:
            targets: of a batch; those with a true ``is_synthetic`` have the weight.
            loss: which of the losses.

        Returns:
            the weights in order, or None.

        Example:
            >>> learnt = SyntheticLosses(0.5, losses=("boxes",))
            >>> learnt.image_weights([{"is_synthetic": True}, {}], "boxes")
            (0.5, 1.0)
            >>> learnt.image_weights([{"is_synthetic": True}, {}], "masks")
            (0.0, 1.0)
        """
        weight = self.weight if loss in self.losses else 0.0
        weights = tuple(weight if target.get("is_synthetic") else 1.0 for target in targets)
        return None if all(weight == 1.0 for weight in weights) else weights


def weigh_rows(
    rows: Tensor,
    weights: tuple[float, ...] | None,
    counts: Sequence[int],
    kept: Tensor | None = None,
) -> Tensor:
    """Return the same values; the gradient of each row is multiplied by the weight of its image.

    Args:
        rows: float[R, ...], the rows of the first image first.
        weights: of each image, or None to leave all as it is.
        counts: how many rows each image has; they sum to R.
        kept: bool[R], rows that count at all; None for every one.

    Returns:
        float[R, ...].
    """
    if weights is None and kept is None:
        return rows
    by_image = rows.new_tensor(weights or (1.0,) * len(counts))
    by_row = torch.repeat_interleave(by_image, torch.tensor(counts, device=rows.device))
    if kept is not None:
        by_row = by_row * kept
    return _ScaledGradient.apply(rows, by_row.reshape(-1, *[1] * (rows.ndim - 1)))


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None
