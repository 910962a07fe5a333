"""Keeps the console to what a person needs: no line twice, no advertisement, no warning that is not ours."""

import logging
import warnings

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console

_NOT_OURS = (
    ".*LeafSpec.*",  # Lightning's use of torch's pytrees
    ".*does not have many workers.*",  # data.num_workers is chosen for the host's cores
    ".*The dirpath has changed from.*",  # a resumed run has its own folder
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Using `DistributedSampler` with the dataloaders.*",  # the evaluator counts repeated images once
    ".*callbacks used to create the checkpoint need to be provided.*",  # validation needs the weights alone
)


def calm_lightning() -> None:
    """Leave Lightning's messages to the caller's logging, and drop those that only inform or advertise."""
    lightning = logging.getLogger("lightning")
    for handler in list(lightning.handlers):  # the root logger prints each line already
        lightning.removeHandler(handler)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOT_OURS:
        warnings.filterwarnings("ignore", message=message)


def build_progress_bar() -> L.Callback:
    """Choose rich where a person looks, plain lines where a file is written."""
    return _RichBar(refresh_rate=5) if Console().is_terminal else _PlainBar(refresh_rate=25)


class _WithoutVersion:
    """Leaves the loggers' version numbers out of the bar."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class _RichBar(_WithoutVersion, RichProgressBar):
    pass


class _PlainBar(_WithoutVersion, TQDMProgressBar):
    def on_exception(self, *_: object) -> None:
        """End the bar's line, which else comes after the sentence that ends the command."""
        for bar in (self._train_progress_bar, self._val_progress_bar):
            if bar is not None:
                bar.close()
