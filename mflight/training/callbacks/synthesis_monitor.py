"""Logs what the generators do and what fills the batches, and says loudly when a generator dies."""

import time
from datetime import timedelta
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from pydantic import Field, validate_call

from mflight.data.slots import SlotCounts
from mflight.synthesis.service import ServiceReport
from mflight.training.datamodule import MixedDataModule


class SynthesisMonitor(L.Callback):
    """Logs ``synthesis/*`` figures of a :class:`MixedDataModule`.

    Args:
        every_n_steps: training steps between two looks.
    """

    @validate_call
    def __init__(self, *, every_n_steps: Annotated[int, Field(ge=1)] = 25):
        self._every_n_steps = every_n_steps
        self._started_at: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to measure rates."""
        self._started_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell what happened, and log the figures from time to time."""
        data = trainer.datamodule
        if not isinstance(data, MixedDataModule):
            return
        self._alert(trainer, data)
        if trainer.global_step % self._every_n_steps == 0:
            pl_module.log_dict(self.figures(data), rank_zero_only=True, batch_size=1)

    def figures(self, data: MixedDataModule) -> dict[str, float]:
        """Return the figures of this moment, by the name under which they are logged."""
        figures = slot_figures(data.counts)
        if data.report is not None:
            figures |= generator_figures(data.report) | data.sharing_figures
            elapsed_s = time.monotonic() - (self._started_at or time.monotonic())
            figures["synthesis/images_per_s"] = figures["synthesis/images"] / max(1.0, elapsed_s)
        if data.stream is not None:
            figures["synthesis/pool_samples"] = data.stream.num_samples
        return {name: float(value) for name, value in figures.items()}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell what happened since the last batch."""
        if isinstance(trainer.datamodule, MixedDataModule):
            self._alert(trainer, trainer.datamodule)

    @staticmethod
    def _alert(trainer: L.Trainer, data: MixedDataModule) -> None:
        is_final = data.report is not None and data.report.given_up > 0
        for message in data.take_messages():
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    # wandb leaves out what follows an alert of the same title within this time
                    logger.experiment.alert(
                        title="mflight generator",
                        text=message,
                        level="ERROR" if is_final else "WARN",
                        wait_duration=timedelta(milliseconds=1),
                    )


def generator_figures(report: ServiceReport) -> dict[str, float]:
    """Return what the generators have done so far, all of them together."""
    regions, rejected = report.total("regions"), report.total_by_name("rejected")
    busy_s, idle_s = report.total("busy_s"), report.total("idle_s")
    return {
        "synthesis/images": report.total("accepted"),
        "synthesis/dropped": report.total("dropped"),
        "synthesis/regions": regions,
        "synthesis/rejected_ratio": sum(rejected.values()) / max(1, regions),
        "synthesis/generator_idle_ratio": idle_s / max(1e-9, busy_s + idle_s),
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
        "synthesis/fallback_ratio": counts.fallback / max(1, synthetic_slots),
        "synthesis/wait_s": counts.wait_s,
    }
