"""Finished runs side by side: what tells them apart, and which differ by the seed alone. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mflight.training.job_names import says_where_not_what

RESULTS_FILE, CONFIG_FILE, HYDRA_FILE = "results.json", ".hydra/config.yaml", ".hydra/hydra.yaml"


@dataclass(frozen=True)
class ComparedRun:
    """One finished run.

    Attributes:
        folder: the run folder.
        seed: of the run.
        figures: the numbers in its ``results.json``, such as ``val/segm/APr`` in percent.
        settings: value by key, leaf by leaf, as composed: interpolations are left as they stand.
        choices: option by config group, such as ``synthesis: online``.
        overrides: the keys that its command line or its sweep has set.
    """

    folder: Path
    seed: Any
    figures: Mapping[str, float]
    settings: Mapping[str, str]
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Group:
    """Runs whose settings differ by the seed alone; ``settings`` holds what sets them apart from others."""

    settings: Mapping[str, str]
    runs: tuple[ComparedRun, ...]

    @property
    def label(self) -> str:
        """The values of the settings, in words for an axis."""
        return ", ".join(self.settings.values()) or "all"


def find_runs(places: Sequence[Path]) -> tuple[list[ComparedRun], list[Path]]:
    """Read the runs in some folders, each by itself or at any depth below.

    Args:
        places: run folders, or folders above them.

    Returns:
        the finished runs, those of one folder by number or name, and the folders of unfinished ones.

    Raises:
        FileNotFoundError: if a place is not there.
    """
    finished: dict[Path, ComparedRun] = {}
    unfinished: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"RUNS must be folders of runs or sweeps, {place} is not there")
        folders = {file.parents[1] for file in place.rglob(CONFIG_FILE)}
        for folder in sorted(folders, key=_by_number):
            if not (folder / RESULTS_FILE).is_file():
                unfinished.append(folder)
            elif folder.resolve() not in finished:
                finished[folder.resolve()] = _read_run(folder)
    return list(finished.values()), unfinished


def group_runs(runs: Sequence[ComparedRun]) -> list[Group]:
    """Group runs that differ by the seed alone.

    Where a config group differs (``synthesis: none`` and ``online``), all below it does too; then the choice
    speaks for the rest, but for what a command line has set.

    Args:
        runs: any runs.

    Returns:
        the groups, in the order of their first runs.
    """
    keys = _telling_keys(runs)
    grouped: dict[tuple[str, ...], list[ComparedRun]] = {}
    for run in runs:
        grouped.setdefault(tuple(_value(run, key) for key in keys), []).append(run)
    return [Group(dict(zip(keys, values, strict=True)), tuple(own)) for values, own in grouped.items()]


def _telling_keys(runs: Sequence[ComparedRun]) -> list[str]:
    groups = sorted({key for run in runs for key in run.choices})
    choices = _differing(runs, groups)
    overridden = frozenset().union(*(run.overrides for run in runs)).difference(groups)
    replaced = tuple(f"{choice.replace('/', '.')}." for choice in choices)
    leaves = _differing(runs, list(dict.fromkeys(key for run in runs for key in run.settings)))
    return choices + [
        key for key in leaves if not key.startswith(replaced) or _is_overridden(key, overridden)
    ]


def _differing(runs: Sequence[ComparedRun], keys: Sequence[str]) -> list[str]:
    telling = [key for key in keys if key != "seed" and not says_where_not_what(key)]
    return [key for key in telling if len({_value(run, key) for run in runs}) > 1]


def _is_overridden(key: str, overridden: frozenset[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in overridden)


def _value(run: ComparedRun, key: str) -> str:
    return run.choices.get(key, run.settings.get(key, "-"))


def settings_of(cfg: DictConfig) -> dict[str, str]:
    """Return the value of each key of a config as text, leaf by leaf; interpolations stay as they are."""
    return _leaves(OmegaConf.to_container(cfg, resolve=False))


def read_settings(folder: Path) -> dict[str, str]:
    """Return ``settings_of`` the config that a run folder keeps."""
    return settings_of(OmegaConf.load(folder / CONFIG_FILE))


def differing_settings(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the keys in which two trainings differ, but for those that say where and not what."""
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if not says_where_not_what(key) and one.get(key) != other.get(key)]


def _read_run(folder: Path) -> ComparedRun:
    cfg, hydra_cfg = OmegaConf.load(folder / CONFIG_FILE), OmegaConf.load(folder / HYDRA_FILE).hydra
    results = json.loads((folder / RESULTS_FILE).read_text())
    return ComparedRun(
        folder=folder,
        seed=cfg.get("seed", "-"),
        figures={key: float(value) for key, value in results.items() if isinstance(value, int | float)},
        settings=settings_of(cfg),
        choices={
            group: str(option)
            for group, option in hydra_cfg.runtime.choices.items()
            if not group.startswith("hydra/")
        },
        overrides=frozenset(override.lstrip("+~").partition("=")[0] for override in hydra_cfg.overrides.task),
    )


def _leaves(node: Mapping[str, Any], place: str = "") -> dict[str, str]:
    leaves = {}
    for key, value in node.items():
        leaves |= (
            _leaves(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": _text(value)}
        )
    return leaves


def _text(value: Any) -> str:
    """Write a value; 0 and 0.0 are one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _by_number(folder: Path) -> tuple:
    """Order the jobs of a sweep as numbers: 2 before 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in folder.parts)
