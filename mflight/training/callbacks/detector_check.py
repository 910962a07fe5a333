"""Takes synthetic samples out of use that the detector surely sees as another class."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field, validate_call
from torch import Tensor

from mflight.synthesis.stream import PoolStream
from mflight.training.callbacks.heads_watcher import HeadsWatcher
from mflight.training.rank_batches import gather_from_ranks


class DetectorCheck(HeadsWatcher):
    """Compares each synthetic sample, when it is trained on, with what the detector says of it.

    A sample is rejected when, of one of its classes, the regions that the detector samples on the instances
    score another class at ``min_score`` or above on average: either the generator drew that other class, or
    the mask is on another object. It uses scores that training computes anyway and reads them from the device
    once in ``every_n_steps``, so the trainer never waits; a sample is therefore used once at least. Rejected
    samples are counted as ``synthesis/rejected/detector`` and stay out after a resume.

    A detector that confuses two classes rejects good samples of them, which are those that it needs most: set
    ``min_score`` high and ``from_step`` late.

    Args:
        min_score: mean score of another class that rejects, in (0, 1]; ``None`` turns the check off.
        from_step: training step from which the detector is asked.
        every_n_steps: training steps between two readings.
    """

    @validate_call
    def __init__(
        self,
        *,
        min_score: Annotated[float, Field(gt=0.0, le=1.0)] | None = None,
        from_step: Annotated[int, Field(ge=0)] = 0,
        every_n_steps: Annotated[int, Field(ge=1)] = 25,
    ):
        super().__init__()
        self._min_score, self._from_step, self._every_n_steps = min_score, from_step, every_n_steps
        self._rejected: set[str] = set()
        self._pending: list[tuple[str, Tensor]] = []
        self._stream: PoolStream | None = None
        self._is_asked = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse to judge images that have real instances beside generated ones."""
        if self._min_score is not None and getattr(trainer.datamodule, "pastes_instances", False):
            raise ValueError(
                f"callbacks.detector_check.min_score={self._min_score} must be null with synthesis/paste: "
                "there an image has real instances beside those of its sample"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to watch the detector."""
        self._stream = getattr(trainer.datamodule, "stream", None)
        if self._min_score is None or self._stream is None:
            return
        self._stream.reject(self._rejected)
        self.watch(pl_module, self._observe)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ask the detector from the step that was set."""
        self._is_asked = trainer.global_step >= self._from_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reject from time to time what the detector spoke against."""
        if self.is_watching and trainer.global_step % self._every_n_steps == 0:
            self._reject()
            num_rejected = float(len(self._rejected_everywhere()))
            pl_module.log("synthesis/rejected/detector", num_rejected, rank_zero_only=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Return which samples are out, of all ranks; all of them call it together."""
        if self._min_score is None:
            return {}
        self._reject()
        return {"rejected": sorted(self._rejected_everywhere())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._rejected = set(state.get("rejected", ()))

    def _observe(
        self, scores: Tensor, labels: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]
    ) -> None:
        if not self._is_asked:
            return
        for rows, own_labels, target in zip(
            scores.split([len(own) for own in labels]), labels, targets, strict=True
        ):
            if target.get("is_synthetic", False) and len(rows):
                self._pending.append((target["sample_id"], strongest_contradiction(rows, own_labels)))

    def _reject(self) -> None:
        if not self._pending or self._min_score is None:
            return
        said = torch.stack([score for _, score in self._pending]).tolist()
        names = [
            name for (name, _), score in zip(self._pending, said, strict=True) if score >= self._min_score
        ]
        self._pending = []
        self._rejected.update(names)
        self._stream.reject(names)

    def _rejected_everywhere(self) -> set[str]:
        return set().union(*gather_from_ranks(self._rejected))


def strongest_contradiction(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how surely the detector sees another class where one of the labels is.

    Args:
        scores: float32[R, C] of the regions of one image.
        labels: int64[R], what they should be, 0 for the background.

    Returns:
        float32 scalar in [0, 1] on the same device: over the regions of a label, the mean of the best score
        of all other classes; of the label of which it is highest. 0 without a region on an instance.
    """
    best_other = scores.scatter(1, (labels - 1).clamp_min(0)[:, None], 0.0).amax(dim=1)  # [R]
    sums = scores.new_zeros(2, scores.shape[1] + 1)
    sums[0].index_add_(0, labels, best_other)
    sums[1].index_add_(0, labels, torch.ones_like(best_other))
    return (sums[0] / sums[1].clamp_min(1.0))[1:].amax()
