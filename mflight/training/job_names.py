"""What a run is called in wandb: its experiment and what sets it apart; the runs of a sweep form a group."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

_MAX_LETTERS = 100
_TELLING_CALLBACKS = ("best", "last", "learning_rate", "synthesis", "panels", "timer")
_WHERE_NOT_WHAT = ("paths", "logger", "name", "sweep", "resume_from")
_WHERE_NOT_WHAT += tuple(f"callbacks.{name}" for name in _TELLING_CALLBACKS)


def says_where_not_what(key: str) -> bool:
    """Tell whether a key of the config, or a config group, has no influence on what is trained."""
    dotted = key.replace("/", ".")
    return any(dotted == place or dotted.startswith(f"{place}.") for place in _WHERE_NOT_WHAT)


def wandb_names(cfg: DictConfig) -> dict[str, str]:
    """Return the ``name`` of a run in wandb, and in a sweep its ``group``, where the config has none."""
    if not HydraConfig.initialized():
        return {}
    wandb, names = cfg.logger.wandb, {}
    hydra_cfg = HydraConfig.get()
    is_sweep = hydra_cfg.mode == RunMode.MULTIRUN
    telling = swept_overrides(hydra_cfg) if is_sweep else list(hydra_cfg.overrides.task)
    if "name" in wandb and wandb.name is None:
        names["name"] = run_name(cfg.name, telling)
    if "group" in wandb and wandb.group is None and is_sweep:
        names["group"] = f"{cfg.name} {Path(hydra_cfg.sweep.dir).name}"
    return names


def run_name(experiment: str, overrides: list[str]) -> str:
    """Return a name such as ``mini synthetic_ratio=0.25 seed=1``, of at most 100 letters.

    Args:
        experiment: its name.
        overrides: of the run, in Hydra's syntax; those that say where and not what are left out.

    Returns:
        the name, each key cut to its last part where no other ends alike.
    """
    pairs = [override.lstrip("+~").partition("=")[::2] for override in overrides]
    pairs = [
        (key, value)
        for key, value in pairs
        if not (says_where_not_what(key) or key.split(".")[0] in ("hydra", "experiment"))
    ]
    last_parts = [_last_part(key) for key, _ in pairs]
    words = [
        f"{last if last_parts.count(last) == 1 else key}={_short(value)}"
        for (key, value), last in zip(pairs, last_parts, strict=True)
    ]
    name = " ".join([experiment, *words])
    return name if len(name) <= _MAX_LETTERS else name[: _MAX_LETTERS - 3] + "..."


def swept_overrides(hydra_cfg: DictConfig) -> list[str]:
    """Return those overrides of a sweep's job that the sweep varies.

    Args:
        hydra_cfg: Hydra's own config of the job.

    Returns:
        overrides in Hydra's syntax, such as ``seed=1``.
    """
    fixed = _fixed_keys(Path(hydra_cfg.sweep.dir) / "multirun.yaml")
    params = set(hydra_cfg.sweeper.get("params") or ())
    own = {override: override.partition("=")[0] for override in hydra_cfg.overrides.task}
    if fixed is None:  # the Optuna sweeper keeps no record of them
        return [override for override, key in own.items() if key in params]
    return [override for override, key in own.items() if key not in fixed]


def _fixed_keys(file: Path) -> set[str] | None:
    """Return what the sweep's command line gives one value, from what Hydra's basic sweeper leaves of it."""
    if not file.is_file():
        return None
    recorded: Any = OmegaConf.load(file)
    given = OverridesParser.create().parse_overrides(list(recorded.hydra.overrides.task))
    return {override.get_key_element() for override in given if not override.is_sweep_override()}


def _last_part(key: str) -> str:
    return key.replace("/", ".").split(".")[-1]


def _short(value: str) -> str:
    """Round the many digits of a value that a sweeper has drawn."""
    try:
        number = float(value)
    except ValueError:
        return value
    return value if len(value) <= 6 else f"{number:.4g}"
