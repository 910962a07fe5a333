"""Assembly of a run, in reading order: data, detector, callbacks, loggers, trainer; then fit."""

import logging
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mflight.training.datamodule import MixedDataModule
from mflight.training.devices import DeviceSplit, split_devices
from mflight.training.results import report_results

logger = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, float]:
    """Train and validate what a composed config describes.

    Args:
        cfg: as ``conf/train.yaml`` composes it.

    Returns:
        the last value of every logged figure.

    Raises:
        FileNotFoundError: if the dataset, or the checkpoint of ``resume_from``, is not there.
        ValueError: if a setting breaks its rule.
    """
    checkpoint = _continue_from(cfg)
    _check_pool(cfg)
    split = _split(cfg)
    if split.synthesis_devices:
        cfg.synthesis.devices, cfg.synthesis.num_threads = (
            list(split.synthesis_devices),
            split.synthesis_threads,
        )
    torch.set_num_threads(split.trainer_threads)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    _say(cfg, split)

    datamodule: MixedDataModule = instantiate(cfg.datamodule)
    datamodule.check_files()
    module = instantiate(cfg.module)
    loggers = [instantiate(node) for node in cfg.logger.values() if node]
    callbacks = [instantiate(node) for node in cfg.callbacks.values() if node]
    trainer = instantiate(
        cfg.trainer,
        accelerator=split.accelerator,
        devices=split.trainer_devices
        if isinstance(split.trainer_devices, int)
        else list(split.trainer_devices),
        callbacks=[*callbacks, _progress_bar()],
        logger=loggers,
    )
    for one in loggers:
        one.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=False)
    if module.validated_at_step != trainer.global_step:  # the last epoch was cut short
        trainer.validate(module, datamodule=datamodule, verbose=False)
    report_results(trainer, run_dir=Path(cfg.paths.run_dir), pool_dir=_pool_dir(cfg))
    for one in loggers:
        one.finalize("success")
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _pool_dir(cfg: DictConfig) -> Path | None:
    return Path(cfg.paths.pool_dir) if cfg.synthesis.stream is not None else None


def _check_pool(cfg: DictConfig) -> None:
    """Replay needs a pool that is there; only a generator makes one."""
    pool_dir = _pool_dir(cfg)
    if pool_dir is not None and cfg.synthesis.service is None and not (pool_dir / "pool.json").is_file():
        raise FileNotFoundError(
            f"synthesis=replay needs a pool, paths.pool_dir={pool_dir} holds none (no pool.json)"
        )


def _continue_from(cfg: DictConfig) -> Path | None:
    """Find the checkpoint to resume, and take over the pool that lies beside it."""
    if cfg.resume_from is None:
        return None
    place = Path(cfg.resume_from).resolve()
    checkpoint = place / "checkpoints" / "last.ckpt" if place.is_dir() else place
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"resume_from must name a run folder or a checkpoint file, {checkpoint} is not there"
        )
    pool = checkpoint.parent.parent / "pool"
    if pool.is_dir():
        cfg.paths.pool_dir = str(pool)
    return checkpoint


def _split(cfg: DictConfig) -> DeviceSplit:
    return split_devices(
        num_gpus=torch.cuda.device_count(),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        global_batch_size=cfg.data.batch_size,
        needs_synthesis=cfg.synthesis.get("service") is not None,
        trainer_devices=_plain(cfg.trainer.devices),
        synthesis_devices=_plain(cfg.synthesis.get("devices", "auto")),
    )


def _plain(choice: Any) -> Any:
    return OmegaConf.to_container(choice) if OmegaConf.is_config(choice) else choice


def _say(cfg: DictConfig, split: DeviceSplit) -> None:
    training = (
        f"trains on {split.accelerator} {split.trainer_devices} with {split.trainer_threads} thread(s) a rank"
    )
    drawing = f"draws on {', '.join(split.synthesis_devices)}" if split.synthesis_devices else "draws nothing"
    logger.info("mflight %s, %s; run folder %s", training, drawing, cfg.paths.run_dir)


def _progress_bar() -> L.Callback:
    """Rich where a person looks, plain lines where a file is written."""
    return RichProgressBar(refresh_rate=5) if Console().is_terminal else TQDMProgressBar(refresh_rate=25)
