"""Weights of single images in the losses, whatever the loss: they scale the gradient of an image's rows.

A loss that is a sum over rows, divided by a number that does not depend on them, has for each row a gradient
of its own; scaling it is the same as weighting the row. The values of the losses stay as they are, so that
figures of runs with different weights can be compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def image_weights(
    targets: Sequence[Mapping[str, Any]], synthetic_loss_weight: float
) -> tuple[float, ...] | None:
    """Return the weight of each image, or None where all weigh 1.

    Args:
        targets: of a batch; those with a true ``is_synthetic`` have the weight.
        synthetic_loss_weight: of synthetic images, >= 0; a real image's is 1.

    Returns:
        the weights in order, or None.

    Example:
        >>> image_weights([{"is_synthetic": True}, {}], 0.5)
        (0.5, 1.0)
    """
    weights = tuple(synthetic_loss_weight if target.get("is_synthetic") else 1.0 for target in targets)
    return None if all(weight == 1.0 for weight in weights) else weights


def weigh_rows(rows: Tensor, weights: tuple[float, ...] | None, counts: Sequence[int]) -> Tensor:
    """Return the same values; the gradient of each row is multiplied by the weight of its image.

    Args:
        rows: float[R, ...], the rows of the first image first.
        weights: of each image, or None to leave all as it is.
        counts: how many rows each image has; they sum to R.

    Returns:
        float[R, ...].
    """
    if weights is None:
        return rows
    by_row = torch.repeat_interleave(rows.new_tensor(weights), torch.tensor(counts, device=rows.device))
    return _ScaledGradient.apply(rows, by_row.reshape(-1, *[1] * (rows.ndim - 1)))


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None
