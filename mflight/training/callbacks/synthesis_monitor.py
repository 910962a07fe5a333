"""Logs what the generators do and what fills the batches, and says loudly when a generator dies."""

import time
from dataclasses import astuple, fields
from datetime import timedelta
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from pydantic import Field, validate_call

from mflight.data.slots import SlotCounts
from mflight.synthesis.service import ServiceReport
from mflight.training.callbacks.shared_device import sharing_figures
from mflight.training.datamodule import MixedDataModule
from mflight.training.rank_batches import rank_and_world_size, sum_over_ranks

_NUM_COUNTS = len(fields(SlotCounts))


class SynthesisMonitor(L.Callback):
    """Logs ``synthesis/*`` figures of a :class:`MixedDataModule`, those of the slots over all ranks.

    ``images_per_s`` counts what was accepted since training began; ``mean_uses`` is over the samples used at
    least once; ``wait_s`` is the mean of the ranks.

    Args:
        every_n_steps: training steps between two looks.
    """

    @validate_call
    def __init__(self, *, every_n_steps: Annotated[int, Field(ge=1)] = 25):
        self._every_n_steps = every_n_steps
        self._started_at: float | None = None
        self._num_before = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to measure rates."""
        self._started_at = time.monotonic()
        data = trainer.datamodule
        if isinstance(data, MixedDataModule) and data.synthetic and data.synthetic.report:
            self._num_before = data.synthetic.report.total("accepted")  # drawn before this run went on

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell what happened, and log the figures from time to time."""
        data = trainer.datamodule
        if not isinstance(data, MixedDataModule):
            return
        self._alert(trainer, data)
        if trainer.global_step % self._every_n_steps == 0:
            figures = self.figures(data, pl_module.device) | sharing_figures(trainer)
            pl_module.log_dict(figures, rank_zero_only=True, batch_size=1)

    def figures(self, data: MixedDataModule, device: torch.device | str = "cpu") -> dict[str, float]:
        """Return the figures of this moment, by the name under which they are logged.

        Args:
            data: whose slots, pool and generators are looked at.
            device: where the ranks sum what they have counted; all of them call it together.

        Returns:
            The figures. Those of the generators are on rank 0 alone.
        """
        counts, used = self._over_ranks(data, device)
        figures = slot_figures(counts) | used
        if data.synthetic is not None and data.synthetic.report is not None:
            figures |= generator_figures(data.synthetic.report)
            elapsed_s = time.monotonic() - (self._started_at or time.monotonic())
            num_drawn = figures["synthesis/images"] - self._num_before
            figures["synthesis/images_per_s"] = num_drawn / max(1.0, elapsed_s)
        return {name: float(value) for name, value in figures.items()}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell what happened since the last batch."""
        if isinstance(trainer.datamodule, MixedDataModule):
            self._alert(trainer, trainer.datamodule)

    def _over_ranks(
        self, data: MixedDataModule, device: torch.device | str
    ) -> tuple[SlotCounts, dict[str, float]]:
        stream = data.synthetic and data.synthetic.stream
        of_stream = (stream.num_samples, stream.num_used, stream.num_uses_in_all) if stream else (0, 0, 0)
        own = [*astuple(data.counts), *of_stream]
        summed = sum_over_ranks(torch.tensor(own, dtype=torch.float32, device=device)).tolist()
        counts = SlotCounts(*summed[:_NUM_COUNTS])
        counts.wait_s /= rank_and_world_size()[1]
        num_samples, num_used, num_uses = summed[_NUM_COUNTS:]
        if stream is None:
            return counts, {}
        return counts, {
            "synthesis/pool_samples": num_samples,
            "synthesis/mean_uses": num_uses / max(1.0, num_used),
        }

    @staticmethod
    def _alert(trainer: L.Trainer, data: MixedDataModule) -> None:
        if (synthetic := data.synthetic) is None:
            return
        is_final = synthetic.report is not None and synthetic.report.given_up > 0
        for message in synthetic.take_messages():
            alert(trainer, message, level="ERROR" if is_final else "WARN")


def alert(trainer: L.Trainer, message: str, level: Literal["WARN", "ERROR"]) -> None:
    """Send an alert to wandb, where the run is logged there.

    Args:
        trainer: whose loggers.
        message: the sentence.
        level: how bad it is.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # wandb leaves out what follows an alert of the same title within this time
            wait = timedelta(milliseconds=1)
            logger.experiment.alert(title="mflight generator", text=message, level=level, wait_duration=wait)


def generator_figures(report: ServiceReport) -> dict[str, float]:
    """Return what the generators have done so far, all of them together."""
    regions, rejected = report.total("regions"), report.total_by_name("rejected")
    busy_s, idle_s = report.total("busy_s"), report.total("idle_s")
    return {
        "synthesis/images": report.total("accepted"),
        "synthesis/dropped": report.total("dropped"),
        "synthesis/regions": regions,
        "synthesis/rejected_ratio": sum(rejected.values()) / max(1, regions),
        "synthesis/busy_s": busy_s,
        "synthesis/generator_idle_ratio": idle_s / max(1e-9, busy_s + idle_s),
        "synthesis/pool_bytes": report.total("size_bytes"),
        "synthesis/generators_alive": report.alive,
        "synthesis/generator_deaths": report.num_deaths,
        **{f"synthesis/rejected/{rule}": number for rule, number in rejected.items()},
    }


def slot_figures(counts: SlotCounts) -> dict[str, float]:
    """Return what filled the slots so far; fallbacks also as a share of the synthetic slots."""
    synthetic_slots = counts.fresh + counts.reused + counts.fallback
    return {
        "synthesis/synthetic_share": counts.synthetic_share,
        "synthesis/fresh": counts.fresh,
        "synthesis/reused": counts.reused,
        "synthesis/fallback": counts.fallback,
        "synthesis/fresh_ratio": counts.fresh / max(1, synthetic_slots),
        "synthesis/reused_ratio": counts.reused / max(1, synthetic_slots),
        "synthesis/fallback_ratio": counts.fallback / max(1, synthetic_slots),
        "synthesis/wait_s": counts.wait_s,
    }
