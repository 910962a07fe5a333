"""Where figures go: wandb, online only for those who are logged in, and CSV."""

import csv
import netrc
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from pydantic import validate_call


@validate_call
def build_wandb_logger(
    *,
    save_dir: Path,
    project: str = "mflight",
    name: str | None = None,
    group: str | None = None,
    run_id: str | None = None,
    tags: list[str] | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
) -> WandbLogger:
    """Build Lightning's wandb logger; it never asks for anything.

    Args:
        save_dir: folder in which wandb makes its own.
        project: wandb project.
        name: of the run; ``None`` lets wandb choose.
        group: that gathers the runs of a sweep.
        run_id: of a wandb run to go on with; ``None`` begins a new one.
        tags: of the run.
        mode: ``"auto"`` is what ``WANDB_MODE`` says, else online where a login is found, else offline.

    Returns:
        the logger.
    """
    resolved = _resolve_mode(mode)
    save_dir.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=resolved != "online")  # the end of the run tells how to sync
    options: dict[str, Any] = {"group": group, "tags": tags, "mode": resolved, "settings": settings}
    logger = WandbLogger(save_dir=save_dir, project=project, name=name, id=run_id, **options)
    logger._wandb_init.pop("anonymous", None)  # wandb warns of the mere key
    return logger


@rank_zero_only
def finish_loggers(loggers: Iterable[Logger]) -> None:
    """End the wandb runs, so that the next run of a sweep begins its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


@rank_zero_only
def join_curves(loggers: Iterable[Logger], earlier: Path, before_step: int) -> None:
    """Begin the CSV file of a resumed run with the rows of the run that it goes on with.

    Args:
        loggers: of the resumed run, which have written nothing yet.
        earlier: folder of the run that it goes on with.
        before_step: step of the checkpoint; what was logged from there on comes again.
    """
    for logger in loggers:
        file = earlier / "csv" / "metrics.csv"
        if not isinstance(logger, CSVLogger) or not file.is_file():
            continue
        with file.open(newline="") as source:
            reader = csv.DictReader(source)
            rows = [row for row in reader if int(row["step"]) < before_step]
        writer = logger.experiment
        writer.metrics_keys = list(reader.fieldnames or ())
        with open(writer.metrics_file_path, "w", newline="") as target:
            joined = csv.DictWriter(target, fieldnames=writer.metrics_keys)
            joined.writeheader()
            joined.writerows(rows)


def _resolve_mode(mode: str) -> str:
    """Return wandb's own mode: of the setting, else of ``WANDB_MODE``, else by whether there is a login."""
    asked = os.environ.get("WANDB_MODE") if mode == "auto" else mode
    if asked:
        return "offline" if asked == "dryrun" else asked
    return "online" if _is_logged_in() else "offline"


def _is_logged_in() -> bool:
    """Tell whether wandb could send a run without asking: there is a key, or a netrc entry for its host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return file.exists() and netrc.netrc(file).authenticators(host or "") is not None
    except (netrc.NetrcParseError, OSError):
        return False
