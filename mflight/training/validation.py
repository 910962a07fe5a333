"""Score a checkpoint again: the detector of a run's own config on its validation images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate

from mflight.training.checkpoint_io import open_checkpoint
from mflight.training.console import calm_lightning
from mflight.training.run_folder import find_checkpoint, load_run_config

_PRIOR_CORRECTION = "mflight.detection.prior_correction.PriorCorrection"  # runs of before have no node of it


def validate_checkpoint(
    *,
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    max_detections: int = 300,
    devices: int | str = 1,
    prior_tau: float | None = None,
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Build the detector of a run, load a checkpoint into it and validate it.

    Each rank matches the detections of its own images, and rank 0 scores what they have found. What is not
    there (checkpoint, config, dataset) is a FileNotFoundError, an override that does not fit a ValueError.

    Args:
        checkpoint: a run folder, whose ``checkpoints/best.ckpt`` is taken, else ``last.ckpt``; or one of the
            files in its ``checkpoints``.
        overrides: ``key=value`` of the run's config, such as ``data.root=/elsewhere``.
        max_detections: how many detections of an image count.
        devices: ranks that share the images, or ``"auto"``: one for each GPU.
        prior_tau: strength of the correction of the class scores (``PriorCorrection``); ``None``: the run's.

    Returns:
        Per IoU type the thirteen figures in percent, and a row for each class (see ``LVISEvaluator``); both
        empty on all ranks but the first.
    """
    run_dir, checkpoint_file = find_checkpoint(checkpoint)
    cfg = load_run_config(run_dir, overrides)
    calm_lightning()
    datamodule = instantiate(cfg.datamodule)
    datamodule.prepare_data()
    cfg.data.num_classes = len(datamodule.categories)
    open_checkpoint(checkpoint_file, key="checkpoint", categories=datamodule.categories.names)
    changes: dict[str, Any] = {"evaluator": {"max_detections": max_detections}}
    if prior_tau is not None:
        changes["prior_correction"] = {"_target_": _PRIOR_CORRECTION, "tau": prior_tau}
    module = instantiate(cfg.module, **changes)
    trainer: L.Trainer = instantiate(cfg.trainer, accelerator="auto", devices=devices, logger=False)
    trainer.validate(module, datamodule=datamodule, ckpt_path=str(checkpoint_file), verbose=False)
    figures: dict[str, dict[str, float]] = {}
    if trainer.global_rank != 0:
        return figures, []
    for name, value in trainer.callback_metrics.items():
        if name.startswith("val/") and name.count("/") == 2:
            _, iou_type, figure = name.split("/")
            figures.setdefault(iou_type, {})[figure] = float(value)
    return figures, module.per_class
