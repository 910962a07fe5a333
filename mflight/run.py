"""Assembly of a run, in reading order: plan, data, detector, callbacks, loggers, trainer; then fit."""

import contextlib
import logging
import os
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from mflight.synthesis.generator_check import check_generator
from mflight.synthesis.pool.locks import hold_pool
from mflight.synthesis.pool_classes import check_pool_classes
from mflight.training.callbacks.shared_device import SharedDevice
from mflight.training.callbacks.stop_signals import Stopped, StopSignals
from mflight.training.callbacks.synthesis_guard import SynthesisGuard
from mflight.training.checkpoint_io import SafeCheckpointIO, open_checkpoint
from mflight.training.console import build_progress_bar, calm_lightning
from mflight.training.datamodule import MixedDataModule
from mflight.training.loggers import finish_loggers, join_curves
from mflight.training.machine_share import jobs_side_by_side, take_share
from mflight.training.rank_launch import launch_ranks, must_launch_ranks
from mflight.training.results import report_results
from mflight.training.run_folder import how_to_go_on, last_checkpoint
from mflight.training.run_plan import RunPlan, plan_run

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
    plan = plan_run(cfg)
    plan.write()
    return train(plan)


def train(plan: RunPlan) -> dict[str, float]:
    """Train and validate what was planned, as one rank or as the process that starts all ranks.

    Args:
        plan: of the run.

    Returns:
        the last value of every logged figure.
    """
    nodes = plan.nodes
    torch.set_num_threads(plan.num_threads)
    L.seed_everything(nodes.seed, workers=True, verbose=False)
    datamodule: MixedDataModule = instantiate(nodes.datamodule)
    datamodule.real.check_unless_made()
    guard = SynthesisGuard(
        run_dir=plan.run_dir,
        when_dead=nodes.synthesis.when_dead,
        max_fallback_ratio=nodes.synthesis.max_fallback_ratio,
    )
    _check_weights(plan, datamodule)
    _check_synthesis(plan, datamodule)
    if must_launch_ranks(plan.num_ranks, plan.num_nodes):
        return launch_ranks(plan)
    module = instantiate(nodes.module)
    loggers = [instantiate(node) for node in nodes.logger.values() if node]
    callbacks = [instantiate(node) for node in nodes.callbacks.values() if node]
    if plan.sharing is not None:
        callbacks.append(SharedDevice(sharing=plan.sharing, turn_steps=nodes.synthesis.turn_steps))
    stop_signals = StopSignals(checkpoint=last_checkpoint(plan.run_dir))
    trainer: L.Trainer = instantiate(
        nodes.trainer,
        callbacks=[*callbacks, guard, build_progress_bar(), stop_signals],
        logger=loggers,
        plugins=[SafeCheckpointIO()],
    )
    _say(plan)
    _remember_pool(plan)
    with stop_signals:
        _fit(trainer, module, datamodule, plan, guard)
    guard.raise_verdict()
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: MixedDataModule,
    plan: RunPlan,
    guard: SynthesisGuard,
) -> None:
    """Fit, validate what has not been, and report; a signal ends the process, saved and with its number."""
    try:
        if plan.checkpoint is not None:
            step = open_checkpoint(plan.checkpoint, key="resume_from")["global_step"]
            join_curves(trainer.loggers, plan.checkpoint.parent.parent, before_step=step)
        for each in trainer.loggers:
            each.log_hyperparams(dict(plan.config))
        trainer.fit(module, datamodule=datamodule, ckpt_path=plan.checkpoint)
        trainer.save_checkpoint(last_checkpoint(plan.run_dir))
        if module.validated_at_step != trainer.global_step:  # the last epoch was cut short
            trainer.validate(module, datamodule=datamodule, verbose=False)
            trainer.save_checkpoint(last_checkpoint(plan.run_dir))
        report_results(trainer, run_dir=plan.run_dir, pool_dir=plan.pool_dir, verdict=guard.verdict)
    except Stopped as stopped:
        if HydraConfig.initialized():  # else the process that has started the ranks says it, once for all
            _say_stopped(plan, stopped.signal.name)
        raise
    finally:
        finish_loggers(trainer.loggers)


@rank_zero_only
def _say_stopped(plan: RunPlan, name: str) -> None:
    logger.warning("stopped by %s; %s", name, how_to_go_on(plan.run_dir, plan.config["resume_from"]))


@rank_zero_only
def _check_weights(plan: RunPlan, datamodule: MixedDataModule) -> None:
    """See that the detector which is gone on with, or begun from, knows the classes of the dataset."""
    weights = plan.config["model"].get("weights")
    if plan.checkpoint is None and weights is None:
        return
    datamodule.prepare_data()
    names = datamodule.train_categories.names
    if plan.checkpoint is not None:
        open_checkpoint(plan.checkpoint, key="resume_from", categories=names)
    if weights is None:
        return
    held = {}
    with contextlib.suppress(ValueError, OSError):  # of another program, or none: the detector tells
        held = open_checkpoint(weights, key="model.weights")
    if len(held.get("class_counts", ())) == len(names):  # else its heads are left out
        open_checkpoint(weights, key="model.weights", categories=names)


@rank_zero_only
def _check_synthesis(plan: RunPlan, datamodule: MixedDataModule) -> None:
    """Look at what the generators are asked for and at the pool, while nothing is started."""
    if plan.pool_dir is None:
        return
    datamodule.prepare_data()  # the planner reads the dataset
    if plan.draws:
        synthesis, diffusion = plan.config["synthesis"], plan.config["diffusion"]
        check_generator(synthesis["planner"], diffusion["synthesizer"], diffusion["unknown_classes"])
        plan.pool_dir.mkdir(parents=True, exist_ok=True)
        with hold_pool(plan.pool_dir):  # generators need a folder that can be written and locked
            pass
    check_pool_classes(plan.pool_dir, datamodule.train_categories)


@rank_zero_only
def _remember_pool(plan: RunPlan) -> None:
    """Leave a link to a pool that lies elsewhere, so that a run resumed from this one finds it."""
    link = plan.run_dir / "pool"
    pool = plan.pool_dir.resolve() if plan.draws else link.resolve()
    if pool != link.resolve() and not os.path.lexists(link):
        with contextlib.suppress(OSError):  # a file system without links
            link.symlink_to(pool, target_is_directory=True)


@rank_zero_only
def _say(plan: RunPlan) -> None:
    devices = plan.devices
    training = f"{plan.accelerator} {devices}, {plan.num_threads} thread(s) a rank"
    elsewhere = "draws on other machines" if plan.draws else "draws nothing"
    drawing = f"draws on {', '.join(plan.synthesis_devices)}" if plan.synthesis_devices else elsewhere
    logger.info("mflight trains on %s, and %s", training, drawing)
    synthesis = plan.config["synthesis"]
    if synthesis["paste"] is not None and not synthesis["background_loss"]:
        logger.info(
            "synthesis.background_loss=false has no effect with synthesis/paste: there the background is a "
            "real image's, which is labelled, and is learnt from"
        )
    if plan.checkpoint is not None:
        logger.info("it goes on from %s", plan.checkpoint)
    logger.info("run folder %s", plan.run_dir)
