"""Where figures go: wandb, online only for those who are logged in, and CSV."""

import netrc
import os
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from pydantic import validate_call

_WANDB_HOST = "api.wandb.ai"


@validate_call
def build_wandb_logger(
    *,
    save_dir: Path,
    project: str = "mflight",
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
) -> WandbLogger:
    """Build Lightning's wandb logger; it never asks for anything.

    Args:
        save_dir: folder in which wandb makes its own.
        project: wandb project.
        name: of the run; ``None`` lets wandb choose.
        group: that gathers the runs of a sweep.
        tags: of the run.
        mode: ``"auto"`` is online where a login is found or ``WANDB_MODE=online``, else offline.

    Returns:
        the logger.

    """
    is_offline = mode == "offline" or (mode == "auto" and not _is_logged_in())
    save_dir.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"group": group, "tags": tags}
    return WandbLogger(save_dir=save_dir, project=project, name=name, offline=is_offline, **settings)


def _is_logged_in() -> bool:
    """Tell whether wandb could send a run without asking: its own settings, a key, or a netrc entry."""
    asked = os.environ.get("WANDB_MODE")
    if asked:
        return asked == "online"
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
        return file.exists() and netrc.netrc(file).authenticators(_WANDB_HOST) is not None
    except (netrc.NetrcParseError, OSError):
        return False
