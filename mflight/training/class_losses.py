"""The detector's running classification loss of each class, without a forward pass of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mflight.training.rank_batches import rank_and_world_size, sum_over_ranks

_LEAST_SCORE = 1e-10  # a loss of 23


class ClassLosses:
    """Mean loss of the proposals of each class, forgetting by half-life, over all ranks.

    ``observe`` only adds on the device and never waits for it; ``update``, called by all ranks at the same
    step, sums over the ranks and forgets. The loss of a proposal is ``-log`` of the score of its own class:
    the cross entropy of a softmax detector, the positive part of the binary one of a sigmoid detector.

    Args:
        num_classes: C.
        images: ``"real"`` leaves the proposals of synthetic images out: their loss also tells of what the
            generator draws badly, and asking for more of that would not mend it. ``"all"`` counts them.
        device: of the scores, where the ranks sum.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        images: Literal["real", "all"] = "real",
        device: torch.device | str = "cpu",
    ):
        self._images = images
        self._pending = torch.zeros(2, num_classes + 1, device=device)  # sum of losses, number of proposals
        self._sums = torch.zeros(2, num_classes + 1, dtype=torch.float64)

    def observe(
        self, scores: Tensor, labels: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None
    ) -> None:
        """Take in one step of this rank.

        Args:
            scores: float32[R, C] in [0, 1], detached: of the classes, without the background.
            labels: int64[R_i] of each image's proposals, 0 for the background.
            targets: of the same images; ``is_synthetic`` tells which were generated.
        """
        counted = [
            torch.zeros_like(own) if self._images == "real" and target.get("is_synthetic", False) else own
            for own, target in zip(labels, targets or [{}] * len(labels), strict=True)
        ]
        place = torch.cat(counted)  # what is not counted goes to the background, which nobody asks for
        own_scores = scores.float().gather(1, (place - 1).clamp_min(0)[:, None])[:, 0]
        losses = -own_scores.clamp_min(_LEAST_SCORE).log()
        self._pending[0].index_add_(0, place, losses)
        self._pending[1].index_add_(0, place, torch.ones_like(losses))

    def update(self, kept_share: float) -> None:
        """Take in what all ranks have observed since the last call.

        Args:
            kept_share: what is left of the weight of all that was known before, in (0, 1].
        """
        self._sums = kept_share * self._sums + sum_over_ranks(self._pending).cpu().double()
        self._pending.zero_()

    def means(self) -> dict[int, float]:
        """Return the loss by label, of the labels in ``1..C`` of which a proposal was seen."""
        losses, counts = self._sums.tolist()
        return {label: losses[label] / counts[label] for label in range(1, len(counts)) if counts[label] > 0}

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that is known; all ranks call it together."""
        return {"sums": self._sums.clone(), "pending": sum_over_ranks(self._pending).cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there; what had not been summed over the ranks belongs to rank 0 from now on."""
        self._sums = state["sums"].double().clone()
        pending = state["pending"].to(self._pending.device, copy=True)
        self._pending = pending if rank_and_world_size()[0] == 0 else torch.zeros_like(pending)
