"""Score a checkpoint again: the detector of a run's own config on its validation images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mflight.training.console import calm_lightning

CONFIG_FILE = Path(".hydra") / "config.yaml"
"""Where a run folder holds the config that it was started with."""


def validate_checkpoint(
    *,
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    max_detections: int = 300,
    devices: int | str = 1,
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

    Returns:
        Per IoU type the thirteen figures in percent, and a row for each class (see ``LVISEvaluator``); both
        empty on all ranks but the first.
    """
    run_dir, checkpoint_file = find_checkpoint(checkpoint)
    cfg = load_run_config(run_dir, overrides)
    calm_lightning()
    datamodule = instantiate(cfg.datamodule)
    datamodule.check_files()
    module = instantiate(cfg.module, evaluator={"max_detections": max_detections})
    trainer: L.Trainer = instantiate(cfg.trainer, accelerator="auto", devices=devices, logger=False)
    trainer.validate(module, datamodule=datamodule, ckpt_path=str(checkpoint_file), verbose=False)
    figures: dict[str, dict[str, float]] = {}
    figures: dict[str, dict[str, float]] = {}
    if trainer.global_rank != 0:
        return figures, []
    for name, value in trainer.callback_metrics.items():
        if name.startswith("val/") and name.count("/") == 2:
            _, iou_type, figure = name.split("/")
            figures.setdefault(iou_type, {})[figure] = float(value)
    return figures, module.per_class


def find_checkpoint(checkpoint: str | Path) -> tuple[Path, Path]:
    """Return the run folder and the checkpoint file that a run folder or a file stands for.

    Args:
        checkpoint: a run folder or a checkpoint file.

    Returns:
        Both paths, absolute.

    Raises:
        FileNotFoundError: if one of them is not there.
    """
    place = Path(checkpoint).resolve()
    files = (
        [place / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")] if place.is_dir() else [place]
    )
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"checkpoint must name a run folder or a checkpoint file, {files[-1]} is not there"
        )
    run_dir = file.parent.parent
    if not (run_dir / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"the config of the run belongs to its checkpoint: {file} needs {run_dir / CONFIG_FILE}, "
            "which train.py writes"
        )
    return run_dir, file


def load_run_config(run_dir: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read the config of a run and take away what only training needs: synthesis, callbacks, loggers.

    Args:
        run_dir: the run folder.
        overrides: ``key=value`` of the config.

    Returns:
        The config, as ``conf/train.yaml`` composed it for the run.

    Raises:
        ValueError: if an override is no ``key=value`` or names no key of the config.
    """
    cfg = OmegaConf.load(run_dir / CONFIG_FILE)
    cfg.paths.run_dir = str(run_dir)  # the run's own place is known to its Hydra job only
    for key, value in {"synthetic_ratio": 0.0, "stream": None, "service": None}.items():
        cfg.synthesis[key] = value
    OmegaConf.set_struct(cfg, True)
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"overrides must be key=value, got {override!r}")
        try:
            cfg.merge_with_dotlist([override])
        except OmegaConfBaseException as error:
            raise ValueError(f"overrides: {override!r} does not fit the run's config: {error}") from None
    return cfg
