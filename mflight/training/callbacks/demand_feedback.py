"""Tells the generators which classes the detector still gets wrong, while both run."""

import contextlib
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import wandb
from lightning.pytorch.loggers import WandbLogger
from pydantic import ConfigDict, Field, validate_call

from mflight.data.categories import FREQUENCIES, Categories
from mflight.synthesis.demand import ClassSignals, DemandRule
from mflight.synthesis.pool.signals import Demand
from mflight.synthesis.stream import PoolStream
from mflight.training.callbacks.heads_watcher import HeadsWatcher
from mflight.training.class_losses import ClassLosses

_COLUMNS = ("step", "category_id", "name", "frequency", "share", "loss", "AP", "drawn", "kept")


class DemandFeedback(HeadsWatcher):
    """Collects loss, AP and acceptance of each class, and writes the demand into the pool folder.

    The loss comes from the logits that training computes anyway, summed over all ranks; the AP from the
    module's ``per_class`` after each validation; the acceptance from the pool's index. A module without
    ``InstanceHeads`` or without ``per_class`` gives no loss or no AP, and the rule takes them as unknown.
    The generators follow the demand under ``synthesis.planner.rule=adaptive``; under other rules they only
    note its step, which tells how old a sample is.

    It logs, by frequency group, ``synthesis/demand/*`` (share of the regions to draw), ``train/class_loss/*``
    and ``synthesis/acceptance/*``; after each validation a table and a histogram of the classes in wandb, and
    rows in ``demand.csv`` beside the run's other files. Its checkpoint state lets a resumed run go on.

    Args:
        rule: makes shares of what was collected; ``None`` turns the callback off.
        every_n_steps: training steps between two writings.
        half_life_steps: training steps after which an observed loss weighs half.
        images: whose proposals give the loss, see :class:`ClassLosses`.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        rule: DemandRule | None = None,
        every_n_steps: Annotated[int, Field(ge=1)] = 25,
        half_life_steps: Annotated[float, Field(gt=0.0)] = 500.0,
        images: Literal["real", "all"] = "real",
    ):
        super().__init__()
        self._rule, self._every_n_steps, self._images = rule, every_n_steps, images
        self._kept_share = 0.5 ** (every_n_steps / half_life_steps)
        self._losses: ClassLosses | None = None
        self._aps: dict[int, float] = {}
        self._saved: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to watch the detector, and tell what is known from before."""
        stream = self._stream(trainer)
        if stream is None:
            return
        self._losses = ClassLosses(len(stream.categories), images=self._images, device=pl_module.device)
        if self._saved is not None:
            self._losses.load_state_dict(self._saved)
        self.watch(pl_module, self._losses.observe)
        self._publish(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the demand from time to time."""
        if self._losses is None or trainer.global_step % self._every_n_steps:
            return
        self._losses.update(self._kept_share)
        signals, shares = self._publish(trainer)
        figures = demand_figures(self._stream(trainer).categories, signals, shares)
        pl_module.log_dict(figures, rank_zero_only=True, batch_size=1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take in the AP of each class, and leave a table."""
        if trainer.sanity_checking or self._losses is None:
            return
        self._aps = class_aps(getattr(pl_module, "per_class", []))
        signals, shares = self._publish(trainer)
        if trainer.is_global_zero:
            rows = demand_rows(trainer.global_step, self._stream(trainer).categories, signals, shares)
            _append_csv(Path(trainer.default_root_dir) / "demand.csv", rows)
            _log_classes(trainer, rows)

    def state_dict(self) -> dict[str, Any]:
        """Return what is known of the classes; all ranks call it together."""
        if self._losses is None:
            return {}
        return {**self._losses.state_dict(), "aps": dict(self._aps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint when training starts."""
        self._saved = state or None
        self._aps = dict(state.get("aps", {}))

    def _stream(self, trainer: L.Trainer) -> PoolStream | None:
        return getattr(trainer.datamodule, "stream", None) if self._rule is not None else None

    def _publish(self, trainer: L.Trainer) -> tuple[dict[int, ClassSignals], dict[int, float]]:
        """Work the demand out; rank 0 writes it."""
        stream = self._stream(trainer)
        signals = class_signals(stream, self._losses.means(), self._aps)
        shares = self._rule.shares(signals)
        if trainer.is_global_zero and stream.folder.is_dir():
            with contextlib.suppress(OSError):  # a full disk stops the generators, not the training
                Demand(trainer.global_step, shares).write(stream.folder)
        return signals, shares


def class_aps(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Return the mask AP, else the box AP, in [0, 1] by category_id, of the classes that have one."""
    aps = {row["category_id"]: row.get("segm/AP", row.get("bbox/AP", -1.0)) for row in rows}
    return {category_id: float(ap) / 100 for category_id, ap in aps.items() if ap >= 0}


def class_signals(
    stream: PoolStream, losses: Mapping[int, float], aps: Mapping[int, float]
) -> dict[int, ClassSignals]:
    """Gather what is known.

    Args:
        stream: its categories and acceptance.
        losses: by label.
        aps: by category_id, in [0, 1].

    Returns:
        The signals by category_id, of all categories.
    """
    drawn, kept = stream.acceptance.num_drawn, stream.acceptance.num_kept
    return {
        category.category_id: ClassSignals(
            image_count=category.image_count,
            loss=losses.get(label),
            ap=aps.get(category.category_id),
            num_drawn=drawn[category.category_id],
            num_kept=kept[category.category_id],
        )
        for label, category in enumerate(stream.categories, start=1)
    }


def demand_figures(
    categories: Categories, signals: Mapping[int, ClassSignals], shares: Mapping[int, float]
) -> dict[str, float]:
    """Return the figures of each frequency group that has them: 1,203 curves would show nothing.

    Args:
        categories: tell the groups.
        signals: of all classes.
        shares: of all classes.

    Returns:
        Figures by the name under which they are logged.
    """
    figures: dict[str, float] = {}
    for frequency in FREQUENCIES:
        ids = [category.category_id for category in categories.with_frequency(frequency)]
        if not ids:
            continue
        figures[f"synthesis/demand/{frequency}"] = sum(shares[one] for one in ids)
        losses = [signals[one].loss for one in ids if signals[one].loss is not None]
        if losses:
            figures[f"train/class_loss/{frequency}"] = sum(losses) / len(losses)
        num_drawn = sum(signals[one].num_drawn for one in ids)
        if num_drawn:
            num_kept = sum(signals[one].num_kept for one in ids)
            figures[f"synthesis/acceptance/{frequency}"] = num_kept / num_drawn
    return figures


def demand_rows(
    step: int, categories: Categories, signals: Mapping[int, ClassSignals], shares: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Return one row for each class, of the columns of ``demand.csv``; what is not known is ``None``."""
    rows = []
    for category in categories:
        one = signals[category.category_id]
        about = (category.category_id, category.name, category.frequency, shares[category.category_id])
        values = (
            step,
            *about,
            one.loss,
            None if one.ap is None else 100 * one.ap,
            one.num_drawn,
            one.num_kept,
        )
        rows.append(dict(zip(_COLUMNS, values, strict=True)))
    return rows


def _append_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with contextlib.suppress(OSError), path.open("a", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


def _log_classes(trainer: L.Trainer, rows: list[dict[str, Any]]) -> None:
    table = [list(row.values()) for row in rows]
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table("synthesis/demand_by_class", columns=list(_COLUMNS), data=table)
            shares = wandb.Histogram([row["share"] for row in rows])
            logger.log_metrics({"synthesis/demand_histogram": shares}, step=rows[0]["step"])
