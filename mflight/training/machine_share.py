"""Runs of a sweep side by side on one machine: each process keeps to its share of the GPUs and cores."""

import fcntl
import logging
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig

logger = logging.getLogger(__name__)

_held: list[IO[str]] = []  # a process keeps its share, and the lock that says so, until it ends


def jobs_side_by_side() -> int:
    """Return at how many runs at a time Hydra's joblib launcher works; 0 for any other launcher."""
    if not HydraConfig.initialized():
        return 0
    launcher = HydraConfig.get().launcher
    num_jobs = launcher.get("n_jobs") if "joblib" in launcher.get("_target_", "") else None
    return 0 if num_jobs is None else num_jobs if num_jobs > 0 else os.cpu_count() or 1


def take_share(folder: Path, num_shares: int) -> None:
    """Claim a share of this machine that no other process of the sweep has, once for each process.

    From then on this process and all that it starts see their GPUs only (``CUDA_VISIBLE_DEVICES``), and run
    on their cores only. It has to come before CUDA is first used. Where all shares
    are taken, it raises a RuntimeError.

    Args:
        folder: of the sweep, for the locks; the system frees that of a process which ends in any way.
        num_shares: processes that divide the machine.
    """
    if _held:
        return
    share = _lock_one(folder, num_shares)
    multiprocessing.set_start_method(None, force=True)  # joblib's own is unknown to what its workers start
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else all_gpus()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share_of(gpus, share, num_shares))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share_of(sorted(os.sched_getaffinity(0)), share, num_shares))
    logger.info("share %d of %d of this machine's GPUs and cores", share + 1, num_shares)


def share_of(things: Sequence[Any], share: int, num_shares: int) -> list[Any]:
    """Return part ``share`` of ``num_shares``, of neighbours; where things are few they serve several."""
    if len(things) < num_shares:
        return [things[share % len(things)]]
    begin, end = (len(things) * edge // num_shares for edge in (share, share + 1))
    return list(things[begin:end])


def all_gpus() -> list[str]:
    """Return the numbers of the GPUs that this process sees."""
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _lock_one(folder: Path, num_shares: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for share in range(num_shares):
        file = (folder / f".share_{share}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        return share
    raise RuntimeError(f"{folder} has {num_shares} shares of this machine, and all are taken")
