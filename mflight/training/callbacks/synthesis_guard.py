"""Keeps a run with synthesis from becoming the baseline unnoticed."""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from pydantic import Field, validate_call

from mflight.mistakes import Mistake
from mflight.synthesis.mosaic_dataset import MosaicDataset
from mflight.training.callbacks.synthesis_monitor import alert
from mflight.training.datamodule import MixedDataModule
from mflight.training.rank_batches import gather_from_ranks, rank_and_world_size, sum_over_ranks

logger = logging.getLogger(__name__)

WhenDead = Literal["stop", "go_on"]
_STEPS_BETWEEN_LOOKS = 5  # of several ranks together: each look is a collective


class SynthesisGuard(L.Callback):
    """Ends a run whose generators are all given up and whose pool has nothing left to use.

    As long as the pool holds samples under their cap of uses, training goes on with them. All ranks stop at
    the same step, after a checkpoint. At the end it tells of a run in which fallbacks filled almost every
    synthetic slot; whoever assembles the run calls ``raise_verdict`` when all else is done.

    Args:
        run_dir: takes the checkpoint.
        when_dead: ``stop`` ends the run, ``go_on`` fills its synthetic slots with real images.
        max_fallback_ratio: largest share of the synthetic slots that real images may have filled in the end;
            1 accepts any.
    """

    @validate_call
    def __init__(
        self,
        *,
        run_dir: Path,
        when_dead: WhenDead = "stop",
        max_fallback_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9,
    ):
        self._run_dir, self._when_dead, self._max_fallback_ratio = run_dir, when_dead, max_fallback_ratio
        self.verdict: str | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look before the first step: the generators may have died while they filled the pool."""
        self._stop_if_lost(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after each step, or each fifth where several ranks must look together."""
        if trainer.world_size == 1 or trainer.global_step % _STEPS_BETWEEN_LOOKS == 0:
            self._stop_if_lost(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the run by what has filled its synthetic slots, over all ranks."""
        data = trainer.datamodule
        if not isinstance(data, MixedDataModule) or data.synthetic is None:
            return
        counts = data.counts
        own = torch.tensor([counts.fallback, counts.fresh + counts.reused], device=pl_module.device)
        fallback, synthetic = sum_over_ranks(own).tolist()
        slots = fallback + synthetic
        if slots and fallback / slots > self._max_fallback_ratio:
            self.verdict = (
                f"this was no run with synthesis: real images filled {fallback} of its {slots} synthetic "
                f"slots, more than synthesis.max_fallback_ratio={self._max_fallback_ratio:g} allows. "
                f"{_reason(data.synthetic)}"
            )
            logger.warning(self.verdict)
            alert(trainer, self.verdict, level="ERROR")
            for each in trainer.loggers:
                if isinstance(each, WandbLogger):
                    each.experiment.summary["synthesis/verdict"] = self.verdict

    def raise_verdict(self) -> None:
        """End the command with the sentence, if there is one.

        Raises:
            Mistake: with the verdict.
        """
        if self.verdict is not None:
            raise Mistake(self.verdict)

    def _stop_if_lost(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule
        if self._when_dead == "go_on" or not isinstance(data, MixedDataModule) or data.synthetic is None:
            return
        if 0 < trainer.max_steps <= trainer.global_step:  # the last step needs no further sample
            return
        synthetic, stream, report = data.synthetic, data.synthetic.stream, data.synthetic.report
        is_lost = report is not None and report.is_over and report.given_up > 0  # on rank 0
        rank, world_size = rank_and_world_size()
        is_used_up = (is_lost or rank > 0) and stream.is_used_up()
        votes = torch.tensor([is_lost, is_used_up], dtype=torch.float32, device=pl_module.device)
        if sum_over_ranks(votes).tolist() != [1, world_size]:
            return
        if trainer.global_step:
            trainer.save_checkpoint(self._run_dir / "checkpoints" / "last.ckpt")
        told = gather_from_ranks(synthetic.messages[-1:])[0]
        held = f"all of its {stream.num_samples} samples are used up" if stream.num_samples else "empty"
        sentence = (
            f"no generator is left and the pool {stream.folder} is {held}: {' '.join(told)}. Stopped at "
            f"step {trainer.global_step}; synthesis.when_dead=go_on would go on with real images"
            + (f", and resume_from={self._run_dir} goes on from here" if trainer.global_step else "")
        )
        alert(trainer, sentence, level="ERROR")
        raise Mistake(sentence)


def _reason(synthetic: MosaicDataset) -> str:
    """What a user can do about it."""
    if synthetic.messages:
        return synthetic.messages[-1]
    if (report := synthetic.report) is None:
        return "The pool has no samples left under synthesis.max_reuse"
    rejected = report.total_by_name("rejected")
    if rejected and not report.total("accepted"):
        by_rule = ", ".join(f"{rule} {count:.0f}" for rule, count in rejected.items())
        return f"Every mosaic was rejected, regions by rule: {by_rule}"
    return (
        f"{report.total('accepted'):.0f} images were drawn meanwhile: train longer, draw on more "
        "or faster devices, or wait for them (synthesis.wait=true)"
    )
