"""What a run will do: decided once from the composed config, written to the run folder, sent to each rank."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from mflight.synthesis.pool.index import INDEX_NAME, holds_pool
from mflight.training.callbacks.shared_device import Sharing
from mflight.training.devices import DeviceSplit, split_devices
from mflight.training.job_names import wandb_names
from mflight.training.real_images import RealImages
from mflight.training.run_folder import checkpoint_file, last_wandb_run

logger = logging.getLogger(__name__)

PLAN_FILE = "run_plan.json"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The decisions of a run, as plain data.

    Attributes:
        run_dir: the run folder.
        pool_dir: the pool that it uses; None for real images only.
        draws: whether generators draw into the pool.
        checkpoint: what it goes on from; None begins anew.
        accelerator: ``"gpu"`` or ``"cpu"``.
        devices: GPU numbers of the ranks on this host; on a CPU the number of ranks.
        num_nodes: hosts that train together.
        num_threads: CPU threads of each rank.
        synthesis_devices: where generators of this host draw.
        sharing: how training and drawing share one GPU; None if each has its own.
        config: the composed config, resolved, with all that was left to be decided.
    """

    run_dir: Path
    pool_dir: Path | None
    draws: bool
    checkpoint: Path | None
    accelerator: Literal["gpu", "cpu"]
    devices: int | tuple[int, ...]
    num_nodes: int
    num_threads: int
    synthesis_devices: tuple[str, ...]
    sharing: Sharing | None
    config: Mapping[str, Any]

    @property
    def num_ranks(self) -> int:
        """Training processes on this host."""
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def nodes(self) -> DictConfig:
        """The config, to build from: a value that is refused is told with its key."""
        return OmegaConf.create(dict(self.config))

    @rank_zero_only
    def write(self) -> None:
        """Write it to ``run_plan.json`` in the run folder."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / PLAN_FILE).write_bytes(TypeAdapter(RunPlan).dump_json(self, indent=1))

    @classmethod
    def read(cls, file: str | Path) -> "RunPlan":
        """Read what ``write`` has written."""
        return TypeAdapter(RunPlan).validate_json(Path(file).read_bytes())


def plan_run(cfg: DictConfig) -> RunPlan:
    """Decide what a composed config leaves open: devices, pool, sharing, names; nothing is started.

    A device that is not to be had, or an unknown way to share one, is a ValueError.

    Args:
        cfg: as ``conf/train.yaml`` composes it; it stays as it is.

    Returns:
        The plan.

    Raises:
        FileNotFoundError: if the checkpoint to resume, or a pool to replay, is not there.
    """
    is_mixed = cfg.synthesis.synthetic_ratio > 0  # else nothing is drawn that no batch has a slot for
    uses_pool = is_mixed and cfg.synthesis.images is not None
    draws = uses_pool and cfg.synthesis.service is not None
    checkpoint = None
    if cfg.resume_from is not None:
        checkpoint = checkpoint_file(cfg.resume_from, ("last",), key="resume_from")
    pool_dir = _choose_pool(cfg, checkpoint)
    if uses_pool and not draws and not holds_pool(pool_dir):
        raise FileNotFoundError(
            f"synthesis=replay needs a pool, paths.pool_dir={pool_dir} holds none (no {INDEX_NAME})"
        )
    split = _split(cfg, draws)
    devices = split.trainer_devices if isinstance(split.trainer_devices, int) else list(split.trainer_devices)
    sharing = _choose_sharing(cfg, split) if split.shares_gpu else None
    changes = {
        "data": {"num_classes": _count_classes(cfg)},
        "paths": {"pool_dir": str(pool_dir)},
        "trainer": {"accelerator": split.accelerator, "devices": devices},
        "synthesis": _decided_synthesis(cfg, split, is_mixed=is_mixed, sharing=sharing),
        "logger": _wandb_run(cfg, checkpoint),
    }
    return RunPlan(
        run_dir=cfg.paths.run_dir,
        pool_dir=pool_dir if uses_pool else None,
        draws=draws,
        checkpoint=checkpoint,
        accelerator=split.accelerator,
        devices=devices,
        num_nodes=cfg.trainer.num_nodes,
        num_threads=split.trainer_threads,
        synthesis_devices=split.synthesis_devices,
        sharing=sharing,
        config=OmegaConf.to_container(OmegaConf.merge(cfg, changes), resolve=True),
    )


def _choose_pool(cfg: DictConfig, checkpoint: Path | None) -> Path:
    """Take over the pool that lies beside the checkpoint to resume, unless the user has named another one."""
    own = Path(cfg.paths.run_dir) / "pool"
    before = checkpoint.parent.parent / "pool" if checkpoint is not None else own
    takes_over = Path(cfg.paths.pool_dir) == own and checkpoint is not None and before.is_dir()
    return before.resolve() if takes_over else Path(cfg.paths.pool_dir)


def _count_classes(cfg: DictConfig) -> int:
    """Take the number of classes from the annotations where the config leaves it to them."""
    if cfg.data.num_classes is not None:
        return cfg.data.num_classes
    real: RealImages = instantiate(cfg.datamodule.real)
    real.prepare()
    return len(real.categories)


def _split(cfg: DictConfig, draws: bool) -> DeviceSplit:
    return split_devices(
        num_gpus=_count_gpus(cfg.trainer.accelerator),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        global_batch_size=cfg.data.batch_size,
        needs_synthesis=draws and cfg.synthesis.devices != [],
        trainer_devices=_plain(cfg.trainer.devices),
        synthesis_devices=_plain(cfg.synthesis.get("devices", "auto")),
    )


def _count_gpus(accelerator: str) -> int:
    """Return how many GPUs may be used: those of this host, none under ``trainer.accelerator=cpu``."""
    num_gpus = torch.cuda.device_count() if accelerator != "cpu" else 0
    if accelerator not in ("auto", "cpu", "gpu") or (accelerator == "gpu" and not num_gpus):
        raise ValueError(
            f"trainer.accelerator must be auto, cpu or gpu, got {accelerator} on {num_gpus} GPUs"
        )
    return num_gpus


def _choose_sharing(cfg: DictConfig, split: DeviceSplit) -> Sharing:
    """Settle how training and drawing share the only GPU, and say what it costs."""
    sharing = cfg.synthesis.single_gpu
    if sharing not in get_args(Sharing):
        raise ValueError(f"synthesis.single_gpu must be one of {get_args(Sharing)}, got {sharing!r}")
    _say_cost(sharing, split.synthesis_devices[0], cfg.synthesis.turn_steps, cfg.synthesis.fill_samples)
    return sharing


@rank_zero_only
def _say_cost(sharing: Sharing, device: str, turn_steps: int, fill_samples: int) -> None:
    if sharing == "take_turns":
        logger.warning(
            "one GPU: training and drawing take turns on %s. After every %d steps training waits for one "
            "batch of drawing, and both models lie in its memory. Else: synthesis.single_gpu=fill_first",
            device,
            turn_steps,
        )
    else:
        logger.warning(
            "one GPU: %d samples are drawn on %s first. Training waits until then, and what is drawn cannot "
            "follow its progress. Else: synthesis.single_gpu=take_turns",
            fill_samples,
            device,
        )


def _decided_synthesis(
    cfg: DictConfig, split: DeviceSplit, *, is_mixed: bool, sharing: Sharing | None
) -> dict[str, Any]:
    """Return what changes under ``synthesis``."""
    if not is_mixed:
        return {"images": None, "stream": None, "service": None}
    decided: dict[str, Any] = {}
    if split.synthesis_devices:
        decided = {"devices": list(split.synthesis_devices), "num_threads": split.synthesis_threads}
    if sharing == "take_turns":
        decided["service"] = {"takes_turns": True}
    elif sharing == "fill_first":  # nobody uses a sample meanwhile
        decided["service"] = {"num_samples": cfg.synthesis.fill_samples, "high_water": None}
    return decided


def _wandb_run(cfg: DictConfig, checkpoint: Path | None) -> dict[str, Any]:
    """Name the wandb run, and go on with that of the checkpoint's run; the jobs of a sweep have one each."""
    if not cfg.logger.get("wandb"):
        return {}
    decided = wandb_names(cfg)
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if checkpoint is not None and cfg.logger.wandb.run_id is None and not is_sweep:
        decided["run_id"] = last_wandb_run(checkpoint.parent.parent)
    return {"wandb": decided}


def _plain(choice: Any) -> Any:
    return OmegaConf.to_container(choice, resolve=True) if OmegaConf.is_config(choice) else choice
