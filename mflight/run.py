"""Assembly of a run, in reading order: data, detector, callbacks, loggers, trainer; then fit."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from mflight.synthesis.generator_check import check_generator
from mflight.synthesis.pool.index import INDEX_NAME, holds_pool
from mflight.synthesis.pool.locks import hold_pool
from mflight.synthesis.pool_classes import check_pool_classes
from mflight.training.callbacks.shared_device import SharedDevice, Sharing
from mflight.training.callbacks.stop_signals import Stopped, StopSignals
from mflight.training.callbacks.synthesis_guard import SynthesisGuard
from mflight.training.checkpoint_io import SafeCheckpointIO, open_checkpoint
from mflight.training.console import build_progress_bar, calm_lightning
from mflight.training.datamodule import MixedDataModule
from mflight.training.devices import DeviceSplit, split_devices
from mflight.training.job_names import name_run
from mflight.training.loggers import finish_loggers, join_curves
from mflight.training.machine_share import jobs_side_by_side, take_share
from mflight.training.rank_launch import launch_ranks, must_launch_ranks
from mflight.training.results import report_results
from mflight.training.run_folder import checkpoint_file, how_to_go_on, last_checkpoint, last_wandb_run
from mflight.training.settings import settle_num_classes

logger = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, float]:
    """Train and validate what a composed config describes.

    A missing dataset, pool or checkpoint is a FileNotFoundError, a setting that breaks its rule a ValueError,
    and both are raised before anything is started. A run that synthesis has left is a Mistake.

    Args:
        cfg: as ``conf/train.yaml`` composes it.

    Returns:
        the last value of every logged figure.
    """
    calm_lightning()
    if num_shares := jobs_side_by_side():
        take_share(Path(HydraConfig.get().sweep.dir), num_shares)
    checkpoint = _continue_from(cfg)
    if cfg.synthesis.synthetic_ratio == 0:  # nothing is drawn that no batch has a slot for
        cfg.synthesis.service = cfg.synthesis.stream = cfg.synthesis.images = None
    _check_pool(cfg)
    name_run(cfg)
    if checkpoint is not None:
        _continue_wandb(cfg, checkpoint)
    split = _split(cfg)
    torch.set_num_threads(split.trainer_threads)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    datamodule: MixedDataModule = instantiate(cfg.datamodule)
    datamodule.real.check_unless_made()
    settle_num_classes(cfg, datamodule)
    guard = SynthesisGuard(
        run_dir=cfg.paths.run_dir,
        when_dead=cfg.synthesis.when_dead,
        max_fallback_ratio=cfg.synthesis.max_fallback_ratio,
    )
    _check_weights(cfg, datamodule, checkpoint)
    _check_synthesis(cfg, datamodule)
    devices = split.trainer_devices if isinstance(split.trainer_devices, int) else list(split.trainer_devices)
    num_ranks = devices if isinstance(devices, int) else len(devices)
    if must_launch_ranks(num_ranks, cfg.trainer.num_nodes):
        cfg.trainer.devices = devices
        return launch_ranks(cfg, num_ranks)
    module = instantiate(cfg.module)
    loggers = [instantiate(node) for node in cfg.logger.values() if node]
    callbacks = [instantiate(node) for node in cfg.callbacks.values() if node]
    if cfg.synthesis.sharing is not None:
        callbacks.append(SharedDevice(sharing=cfg.synthesis.sharing, turn_steps=cfg.synthesis.turn_steps))
    stop_signals = StopSignals(checkpoint=last_checkpoint(cfg.paths.run_dir))
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        accelerator=split.accelerator,
        devices=devices,
        callbacks=[*callbacks, guard, build_progress_bar(), stop_signals],
        logger=loggers,
        plugins=[SafeCheckpointIO()],
    )
    _say(cfg, split, checkpoint)
    _remember_pool(cfg)
    with stop_signals:
        _train(trainer, module, datamodule, cfg, checkpoint, guard)
    guard.raise_verdict()
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _train(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: MixedDataModule,
    cfg: DictConfig,
    checkpoint: Path | None,
    guard: SynthesisGuard,
) -> None:
    """Fit, validate what has not been, and report; a signal ends the process, saved and with its number."""
    try:
        if checkpoint is not None:
            step = open_checkpoint(checkpoint, key="resume_from")["global_step"]
            join_curves(trainer.loggers, checkpoint.parent.parent, before_step=step)
        for each in trainer.loggers:
            each.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
        trainer.save_checkpoint(last_checkpoint(cfg.paths.run_dir))
        if module.validated_at_step != trainer.global_step:  # the last epoch was cut short
            trainer.validate(module, datamodule=datamodule, verbose=False)
            trainer.save_checkpoint(last_checkpoint(cfg.paths.run_dir))
        run_dir, pool_dir = Path(cfg.paths.run_dir), _pool_dir(cfg)
        report_results(trainer, run_dir=run_dir, pool_dir=pool_dir, verdict=guard.verdict)
    except Stopped as stopped:
        if HydraConfig.initialized():  # else the process that has started the ranks says it, once for all
            _say_stopped(cfg, stopped.signal.name)
        raise
    finally:
        finish_loggers(trainer.loggers)


@rank_zero_only
def _say_stopped(cfg: DictConfig, name: str) -> None:
    logger.warning("stopped by %s; %s", name, how_to_go_on(cfg.paths.run_dir, cfg.resume_from))


def _pool_dir(cfg: DictConfig) -> Path | None:
    return Path(cfg.paths.pool_dir) if cfg.synthesis.stream is not None else None


def _check_pool(cfg: DictConfig) -> None:
    """Replay needs a pool that is there; only a generator makes one."""
    pool_dir = _pool_dir(cfg)
    if pool_dir is not None and cfg.synthesis.service is None and not holds_pool(pool_dir):
        raise FileNotFoundError(
            f"synthesis=replay needs a pool, paths.pool_dir={pool_dir} holds none (no {INDEX_NAME})"
        )


@rank_zero_only
def _check_weights(cfg: DictConfig, datamodule: MixedDataModule, checkpoint: Path | None) -> None:
    """See that the detector which is gone on with, or begun from, knows the classes of the dataset."""
    weights = cfg.model.get("weights")
    if checkpoint is None and weights is None:
        return
    datamodule.prepare_data()
    names = datamodule.train_categories.names
    if checkpoint is not None:
        open_checkpoint(checkpoint, key="resume_from", categories=names)
    if weights is None:
        return
    held = {}
    with contextlib.suppress(ValueError, OSError):  # of another program, or none: the detector tells
        held = open_checkpoint(weights, key="model.weights")
    if len(held.get("class_counts", ())) == len(names):  # else its heads are left out
        open_checkpoint(weights, key="model.weights", categories=names)


@rank_zero_only
def _check_synthesis(cfg: DictConfig, datamodule: MixedDataModule) -> None:
    """Look at what the generators are asked for and at the pool, while nothing is started."""
    if cfg.synthesis.stream is None:
        return
    datamodule.prepare_data()  # the planner reads the dataset
    if cfg.synthesis.service is not None:
        planner, synthesizer = map(_plain, (cfg.synthesis.planner, cfg.diffusion.synthesizer))
        check_generator(planner, synthesizer, cfg.diffusion.unknown_classes)
        pool_dir = Path(cfg.paths.pool_dir)
        pool_dir.mkdir(parents=True, exist_ok=True)
        with hold_pool(pool_dir):  # generators need a folder that can be written and locked
            pass
    check_pool_classes(cfg.paths.pool_dir, datamodule.train_categories)


def _continue_from(cfg: DictConfig) -> Path | None:
    """Find the checkpoint to resume, and take over the pool that lies beside it."""
    if cfg.resume_from is None:
        return None
    checkpoint = checkpoint_file(cfg.resume_from, ("last",), key="resume_from")
    pool = checkpoint.parent.parent / "pool"
    is_own = Path(cfg.paths.pool_dir) == Path(cfg.paths.run_dir) / "pool"  # nobody has named another one
    if is_own and pool.is_dir():
        cfg.paths.pool_dir = str(pool.resolve())
    return checkpoint


def _continue_wandb(cfg: DictConfig, checkpoint: Path) -> None:
    """Go on with the wandb run of the checkpoint's run; the jobs of a sweep have one each."""
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if cfg.logger.get("wandb") and cfg.logger.wandb.run_id is None and not is_sweep:
        cfg.logger.wandb.run_id = last_wandb_run(checkpoint.parent.parent)


@rank_zero_only
def _remember_pool(cfg: DictConfig) -> None:
    """Leave a link to a pool that lies elsewhere, so that a run resumed from this one finds it."""
    link = Path(cfg.paths.run_dir) / "pool"
    pool = Path(cfg.paths.pool_dir).resolve()
    if cfg.synthesis.service is not None and pool != link.resolve() and not os.path.lexists(link):
        with contextlib.suppress(OSError):  # a file system without links
            link.symlink_to(pool, target_is_directory=True)


def _split(cfg: DictConfig) -> DeviceSplit:
    """Divide the devices, and write down who draws where."""
    split = split_devices(
        num_gpus=_count_gpus(cfg.trainer.accelerator),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        global_batch_size=cfg.data.batch_size,
        needs_synthesis=cfg.synthesis.get("service") is not None and cfg.synthesis.devices != [],
        trainer_devices=_plain(cfg.trainer.devices),
        synthesis_devices=_plain(cfg.synthesis.get("devices", "auto")),
    )
    if split.synthesis_devices:
        cfg.synthesis.devices = list(split.synthesis_devices)
        cfg.synthesis.num_threads = split.synthesis_threads
    if split.shares_gpu:
        _share_device(cfg, split.synthesis_devices[0])
    return split


def _count_gpus(accelerator: str) -> int:
    """Return how many GPUs may be used: those of this host, none under ``trainer.accelerator=cpu``."""
    num_gpus = torch.cuda.device_count() if accelerator != "cpu" else 0
    if accelerator not in ("auto", "cpu", "gpu") or (accelerator == "gpu" and not num_gpus):
        raise ValueError(
            f"trainer.accelerator must be auto, cpu or gpu, got {accelerator} on {num_gpus} GPUs"
        )
    return num_gpus


def _plain(choice: Any) -> Any:
    return OmegaConf.to_container(choice, resolve=True) if OmegaConf.is_config(choice) else choice


def _share_device(cfg: DictConfig, device: str) -> None:
    """Settle how training and drawing share the only GPU, and say what it costs."""
    sharing = cfg.synthesis.single_gpu
    if sharing not in get_args(Sharing):
        raise ValueError(f"synthesis.single_gpu must be one of {get_args(Sharing)}, got {sharing!r}")
    cfg.synthesis.sharing = sharing
    if sharing == "take_turns":
        cfg.synthesis.service.takes_turns = True
    else:
        cfg.synthesis.service.num_samples = cfg.synthesis.fill_samples
        cfg.synthesis.service.high_water = None  # nobody uses a sample meanwhile
    _say_cost(cfg, device)


@rank_zero_only
def _say_cost(cfg: DictConfig, device: str) -> None:
    if cfg.synthesis.sharing == "take_turns":
        logger.warning(
            "one GPU: training and drawing take turns on %s. After every %d steps training waits for one "
            "batch of drawing, and both models lie in its memory. Else: synthesis.single_gpu=fill_first",
            device,
            cfg.synthesis.turn_steps,
        )
    else:
        logger.warning(
            "one GPU: %d samples are drawn on %s first. Training waits until then, and what is drawn cannot "
            "follow its progress. Else: synthesis.single_gpu=take_turns",
            cfg.synthesis.fill_samples,
            device,
        )


@rank_zero_only
def _say(cfg: DictConfig, split: DeviceSplit, checkpoint: Path | None) -> None:
    training = f"{split.accelerator} {split.trainer_devices}, {split.trainer_threads} thread(s) a rank"
    elsewhere = "draws nothing" if cfg.synthesis.service is None else "draws on other machines"
    drawing = f"draws on {', '.join(split.synthesis_devices)}" if split.synthesis_devices else elsewhere
    logger.info("mflight trains on %s, and %s", training, drawing)
    if cfg.synthesis.paste is not None and not cfg.synthesis.background_loss:
        logger.info(
            "synthesis.background_loss=false has no effect with synthesis/paste: there the background is a "
            "real image's, which is labelled, and is learnt from"
        )
    if checkpoint is not None:
        logger.info("it goes on from %s", checkpoint)
    logger.info("run folder %s", cfg.paths.run_dir)
