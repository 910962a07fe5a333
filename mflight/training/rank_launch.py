"""Training on several devices: torchrun's agent runs one process a rank, on the plan made here."""

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mflight.mistakes import EXIT_STATUS, Mistake
from mflight.training.run_folder import how_to_go_on
from mflight.training.run_plan import PLAN_FILE, RunPlan

logger = logging.getLogger(__name__)


def must_launch_ranks(num_ranks: int, num_nodes: int) -> bool:
    """Return whether this process is to start the ranks, and is not one that torchrun or srun has started.

    Args:
        num_ranks: of this host.
        num_nodes: hosts that train together.

    Returns:
        True for the process of a user, False for a rank and where there is one rank only.

    Raises:
        ValueError: if other hosts are to train too and nothing has started this process as one of them.
    """
    is_rank = "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if num_nodes > 1 and not is_rank:
        raise ValueError(
            f"trainer.num_nodes={num_nodes} needs torchrun or srun to start train.py on each host"
        )
    return num_ranks > 1 and not is_rank


def launch_ranks(plan: RunPlan) -> dict[str, float]:
    """Run ``python -m mflight.rank`` once for each rank, and wait for all of them.

    Lightning would start this process's own command line again for each rank. In a multirun that is the whole
    sweep, under joblib or submitit not even the same program. A rank that gets the plan of the run instead
    is the same in all of these, and leaves no process group behind for the next job of the sweep.

    Args:
        plan: of the run, which the ranks read from its folder.

    Returns:
        the figures in the run's ``results.json``.

    Raises:
        Mistake: with the first rank's sentence, if it was asked for what cannot be.
        RuntimeError: with the first rank's error, if one of them fails; the others are stopped then.
    """
    with (
        tempfile.TemporaryDirectory(prefix="mflight_ranks_") as folder,
        _same_mflight(),
        _own_signal_handlers(),
    ):
        agent = elastic_launch(_launch_config(plan.num_ranks, folder), sys.executable)
        try:
            agent("-m", "mflight.rank", str(plan.run_dir / PLAN_FILE))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            told = failure.message.get("message") if isinstance(failure.message, dict) else failure.message
            if failure.exitcode == EXIT_STATUS:
                raise Mistake(f"{told}".removeprefix("Mistake: ")) from None
            if failure.exitcode - 128 in (signal.SIGTERM, signal.SIGINT):  # a rank was stopped by itself
                _end_stopped(plan, failure.exitcode - 128)
            raise RuntimeError(f"rank {rank} of {plan.num_ranks} has failed: {told}") from None
        except SignalException as error:
            _end_stopped(plan, error.sigval)
    results = json.loads((plan.run_dir / "results.json").read_text())
    return {name: float(value) for name, value in results.items() if isinstance(value, int | float)}


def _end_stopped(plan: RunPlan, number: int) -> NoReturn:
    advice = how_to_go_on(plan.run_dir, plan.config["resume_from"])
    logger.warning("stopped by %s; %s", signal.Signals(number).name, advice)
    sys.exit(128 + number)


def _launch_config(num_ranks: int, log_dir: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=Path(log_dir).name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=log_dir),
    )


@contextmanager
def _same_mflight() -> Iterator[None]:
    """Let the ranks import the package that this process has, wherever they are started."""
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = root if before is None else f"{root}{os.pathsep}{before}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Give this process its signal handlers back, which the agent replaces for good."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
