"""Where figures go: wandb, online only for those who are logged in, and CSV."""

import netrc
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from pydantic import validate_call


@validate_call
def build_wandb_logger(
    *,
    save_dir: Path,
    project: str = "mflight",
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
) -> WandbLogger:
    """Build Lightning's wandb logger; it never asks for anything.

    Args:
        save_dir: folder in which wandb makes its own.
        project: wandb project.
        name: of the run; ``None`` lets wandb choose.
        group: that gathers the runs of a sweep.
        tags: of the run.
        mode: ``"auto"`` is what ``WANDB_MODE`` says, else online where a login is found, else offline.

    Returns:
        the logger.
    """
    resolved = _resolve_mode(mode)
    save_dir.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=resolved != "online")  # the end of the run tells how to sync
    options: dict[str, Any] = {"group": group, "tags": tags, "mode": resolved, "settings": settings}
    logger = WandbLogger(save_dir=save_dir, project=project, name=name, **options)
    logger._wandb_init.pop("anonymous", None)  # wandb warns of the mere key
    return logger


@rank_zero_only
def finish_loggers(loggers: Iterable[Logger]) -> None:
    """End the wandb runs, so that the next run of a sweep begins its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


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
