"""Leaves synthetic instances out of the losses that the detector, while it trains, does not confirm."""

from typing import Annotated, Any

import lightning as L
from pydantic import Field, validate_call

from mflight.detection.heads import InstanceHeads
from mflight.detection.proposals import ProposalNetwork
from mflight.detection.verification import Verification
from mflight.training.rank_batches import sum_over_ranks

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class DetectorCheck(L.Callback):
    """Turns :class:`mflight.detection.verification.Verification` on, and logs what it left out.

    It uses the proposals and scores of training, so it costs no forward pass, and it keeps no state: what
    counts is the detector of the step, after a resume too. ``synthesis/unconfirmed_ratio`` is the share of
    the synthetic instances, over all ranks and since the last look, that were left out.

    A class that the detector has not learnt yet is left out as well, and those are the ones that synthesis is
    for: begin late, and look first, with ``python -m mflight.evaluate pool=POOL checkpoint=RUN``, at what a
    threshold costs each class.

    Args:
        min_score: an instance is left out while the detector scores its class below it on every region that
            lies on it, in [0, 1]; ``None`` turns the check off. Gen2Det has 0.1.
        min_iou: and while no proposal has this box IoU with it, in [0, 1]. Gen2Det has 0.3.
        from_step: training step from which the detector is asked.
        every_n_steps: training steps between two looks.
    """

    @validate_call
    def __init__(
        self,
        *,
        min_score: Share | None = None,
        min_iou: Share = 0.3,
        from_step: Annotated[int, Field(ge=0)] = 0,
        every_n_steps: Annotated[int, Field(ge=1)] = 25,
    ):
        super().__init__()
        self._min_score, self._from_step, self._every_n_steps = min_score, from_step, every_n_steps
        self._verification = None if min_score is None else Verification(min_iou=min_iou, min_score=min_score)
        self._parts: list[InstanceHeads | ProposalNetwork] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be judged: another detector, and real instances beside generated ones."""
        if self._verification is None:
            return
        setting = f"callbacks.detector_check.min_score={self._min_score}"
        if getattr(trainer.datamodule, "pastes_instances", False):
            raise ValueError(
                f"{setting} must be null with synthesis/paste: "
                "there an image has real instances beside those of its sample"
            )
        kinds = (InstanceHeads, ProposalNetwork)
        self._parts = [part for part in pl_module.modules() if isinstance(part, kinds)]
        if not any(isinstance(part, ProposalNetwork) for part in self._parts):
            detector = type(getattr(pl_module, "model", pl_module)).__name__
            raise ValueError(f"{setting} needs a detector of build_mask_rcnn, got {detector}")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ask the detector from the step that was set."""
        if trainer.global_step >= self._from_step:
            self._verify_by(self._verification)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log from time to time what was left out."""
        if self._verification is None or trainer.global_step % self._every_n_steps:
            return
        judged, left_out = sum_over_ranks(self._verification.take_counts().to(pl_module.device)).tolist()
        if judged:
            ratio = left_out / judged
            pl_module.log("synthesis/unconfirmed_ratio", ratio, rank_zero_only=True, batch_size=1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the detector as it was."""
        self._verify_by(None)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the detector as it was."""
        self._verify_by(None)

    def _verify_by(self, verification: Verification | None) -> None:
        for part in self._parts:
            part.verification = verification
