"""One rank of a training on several devices: ``python -m mflight.rank PLAN``, started by ``train.py``."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mflight.mistakes import EXIT_STATUS, Mistake, is_to_be_told, tell


def main() -> None:
    """Train by the plan that the command line names."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from mflight.training.run_plan import RunPlan  # not above: each generator process imports this file

    plan = RunPlan.read(sys.argv[1])
    _log_as_the_launcher_does(plan.run_dir)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        record(_run)(plan)
    except Mistake:
        sys.exit(EXIT_STATUS)  # the launcher tells it, once for all ranks


def _run(plan: Any) -> None:
    from mflight.run import train
    from mflight.training.console import calm_lightning

    calm_lightning()
    try:
        train(plan)
    except Exception as error:
        if is_to_be_told(error):
            raise Mistake(tell(error, plan.nodes)) from None
        raise


def _log_as_the_launcher_does(run_dir: Path) -> None:
    """Rank 0 writes what the run has to say, the others speak when something is wrong."""
    is_first = os.environ.get("RANK", "0") == "0"
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if is_first:
        handlers.append(logging.FileHandler(run_dir / "train.log"))
    logging.basicConfig(
        level=logging.INFO if is_first else logging.WARNING,
        format="%(levelname)s %(message)s",
        handlers=handlers,
    )


def _end_with(launcher: int) -> None:
    """Stop as after SIGTERM when the launcher is gone, even if it was killed."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
