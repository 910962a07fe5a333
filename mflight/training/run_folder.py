"""What a run folder holds: checkpoints, and the config that the run was started with. No torch."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIG_FILE = Path(".hydra") / "config.yaml"
"""Where a run folder holds the config that it was started with."""


def checkpoint_file(place: str | Path, names: Sequence[str], *, key: str) -> Path:
    """Return the checkpoint file that a run folder or a file stands for.

    Args:
        place: a run folder or a checkpoint file.
        names: of the checkpoints of a run folder, the one wanted most first.
        key: what the user calls ``place``, for the message.

    Returns:
        Its path, absolute.

    Raises:
        FileNotFoundError: if there is none.
    """
    place = Path(place).resolve()
    files = [place / "checkpoints" / f"{name}.ckpt" for name in names] if place.is_dir() else [place]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{key} must name a run folder or a checkpoint file, {files[-1]} is not there"
        )
    return file


def last_checkpoint(run_dir: str | Path) -> Path:
    """Return where a run keeps the checkpoint to go on from."""
    return Path(run_dir) / "checkpoints" / "last.ckpt"


def how_to_go_on(run_dir: str | Path, resumed_from: str | None) -> str:
    """Say how to go on with a stopped run: from its checkpoint, else from the one that it began with.

    Args:
        run_dir: its folder.
        resumed_from: what it was resumed from itself, if it was.

    Returns:
        The end of a sentence.
    """
    place = run_dir if last_checkpoint(run_dir).is_file() else resumed_from
    return "nothing has been saved yet" if place is None else f"to go on: resume_from={place}"


def last_wandb_run(run_dir: Path) -> str | None:
    """Return the id of the wandb run that was last written in a run folder; ``None`` if there is none."""
    folders = sorted(run_dir.glob("wandb/*run-*-*"), key=lambda path: path.name.partition("run-")[2])
    return folders[-1].name.rpartition("-")[2] if folders else None


def find_checkpoint(checkpoint: str | Path) -> tuple[Path, Path]:
    """Return the run folder and the best checkpoint, else the last, that a run folder or a file stands for.

    Args:
        checkpoint: a run folder or a checkpoint file.

    Returns:
        Both paths, absolute.

    Raises:
        FileNotFoundError: if one of them is not there.
    """
    file = checkpoint_file(checkpoint, ("best", "last"), key="checkpoint")
    run_dir = file.parent.parent
    if not (run_dir / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"the config of the run belongs to its checkpoint: {file} needs {run_dir / CONFIG_FILE}, "
            "which train.py writes"
        )
    return run_dir, file


def load_run_config(run_dir: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read the config of a run and take away what only training needs: synthesis, callbacks, loggers.

    Args:
        run_dir: the run folder.
        overrides: ``key=value`` of the config.

    Returns:
        The config, as ``conf/train.yaml`` composed it for the run.

    Raises:
        ValueError: if an override is no ``key=value`` or names no key of the config.
    """
    cfg = OmegaConf.load(run_dir / CONFIG_FILE)
    cfg.paths.run_dir = str(run_dir)  # the run's own place is known to its Hydra job only
    for key, value in {"synthetic_ratio": 0.0, "images": None, "stream": None, "service": None}.items():
        cfg.synthesis[key] = value
    OmegaConf.set_struct(cfg, True)
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"overrides must be key=value, got {override!r}")
        try:
            cfg.merge_with_dotlist([override])
        except OmegaConfBaseException as error:
            raise ValueError(f"overrides: {override!r} does not fit the run's config: {error}") from None
    return cfg
