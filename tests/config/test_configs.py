"""Every file of conf/ composes, and every `_target_` and its keys exist."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUP_FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)
ROOT_FILES = sorted(
    path.stem for path in CONF.glob("*.yaml") if path.stem != "wandb_sweep"
)  # W&B's, not Hydra's
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
AT_RUNTIME = {  # what the program hands in
    "mflight.synthesis.stream.PoolStream": {"categories", "rank", "world_size"},
    "mflight.data.instance_paste.InstancePaste": {"scales"},
    "mflight.data.share.SyntheticShare": {"num_steps", "num_ranks"},
    "mflight.training.optim.warmup_cosine": {"optimizer"},
    "mflight.training.optim.warmup_multistep": {"optimizer"},
}
RUNTIME = ["paths.run_dir=runs/test"]  # what hydra.main would fill in
LVIS_FORMAT = [
    f"data.{key}=somewhere"
    for key in ("root", "train_annotations", "train_images", "val_annotations", "val_images")
] + ["data.num_classes=3"]


def compose_with(overrides: Sequence[str], name: str = "train") -> DictConfig:
    """Compose a config as Hydra does for a command; the same one a second time is a copy."""
    return copy.deepcopy(_composed(name, tuple(overrides)))


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def nodes_with_target(node: object, place: str = "") -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield place, node
        for key in node:
            yield from nodes_with_target(node[key], f"{place}.{key}")
    elif isinstance(node, ListConfig):
        for index, child in enumerate(node):
            yield from nodes_with_target(child, f"{place}[{index}]")


def check_targets(cfg: DictConfig) -> int:
    """Each `_target_` exists, takes the keys of its node, and of ours the node spells all that it takes."""
    nodes = list(nodes_with_target(cfg))
    for place, node in nodes:
        name = node["_target_"]
        parameters = inspect.signature(get_object(name)).parameters
        named = {key for key, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        unknown = set(node) - HYDRA_KEYS - named
        assert not unknown or len(named) < len(parameters), f"{place}: {name} has no {sorted(unknown)}"
        hidden = named - set(node) - AT_RUNTIME.get(name, set())
        assert not hidden or not name.startswith("mflight."), f"{place} hides {sorted(hidden)} of {name}"
    return len(nodes)


@pytest.mark.parametrize("file", GROUP_FILES, ids=str)
def test_every_group_file_composes_and_its_targets_resolve(file):
    given = LVIS_FORMAT if file == Path("data/lvis_format.yaml") else []
    cfg = compose_with([*RUNTIME, f"{file.parent.as_posix()}={file.stem}", *given])
    assert check_targets(cfg) >= 10
    OmegaConf.resolve(cfg)


@pytest.mark.parametrize("name", ROOT_FILES)
def test_every_root_file_composes(name):
    given = {
        "train": RUNTIME,
        "evaluate": ["annotations=a.json", "predictions=b.json"],
        "generate": ["paths.pool_dir=pools/test"],
        "check_data": ["data=minilvis"],
        "prove": RUNTIME,
    }
    cfg = compose_with(given[name], name)
    assert len(cfg) > 0
    check_targets(cfg)


def test_the_walk_finds_the_files_it_should():
    assert Path("experiment/lvis_rare.yaml") in GROUP_FILES
    assert len(GROUP_FILES) >= 20


SWEEP_FILES = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


def swept_settings(name: str) -> dict[str, str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"sweep={name}"], return_hydra_config=True)
    assert cfg.hydra.mode == RunMode.MULTIRUN, "`python train.py sweep=...` alone starts it"
    return dict(cfg.hydra.sweeper.params)


@pytest.mark.parametrize("name", SWEEP_FILES)
def test_each_value_of_a_sweep_can_be_set(name):
    parser = OverridesParser.create()
    for key, values in swept_settings(name).items():
        (sweep,) = parser.parse_overrides([f"{key}={values}"])
        if sweep.is_discrete_sweep():
            for value in sweep.sweep_string_iterator():
                compose_with([*RUNTIME, f"{key}={value}"])
        else:
            compose_with([*RUNTIME, f"{key}={sweep.value().start}"])


def test_grids_repeat_each_setting_with_several_seeds():
    grids = [name for name in SWEEP_FILES if name != "optuna"]
    assert len(grids) >= 3
    assert all(swept_settings(name)["seed"] == "0,1,2" for name in grids)


LAUNCHERS = {
    "one_machine": ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", {"n_jobs": 2}),
    "slurm": (
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
        {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 8, "cpus_per_task": 64, "timeout_min": 2880},
    ),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_sweep_takes_a_launcher_with_its_settings(name):
    target, settings = LAUNCHERS[name]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["sweep=ratio", f"hydra/launcher={name}"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_ == target and inspect.isclass(get_object(target))
    assert {key: launcher[key] for key in settings} == settings
    written = OmegaConf.load(CONF / "hydra" / "launcher" / f"{name}.yaml")
    assert set(written) - {"defaults"} == set(settings)


def test_the_parameters_of_wandbs_sweep_file_can_be_set():
    raw = (CONF / "wandb_sweep.yaml").read_text()
    sweep = OmegaConf.create(raw)
    assert (CONF.parent / sweep.program).is_file() and "${args_no_hyphens}" in raw
    for key, choice in sweep.parameters.items():
        for value in choice["values"]:
            compose_with([*RUNTIME, f"{key}={value}"])


def test_an_unknown_key_is_refused():
    with pytest.raises(Exception, match="synthetic_ration"):
        compose_with([*RUNTIME, "synthesis.synthetic_ration=0.5"])


def test_lvis_rare_draws_and_its_baseline_does_not():
    rare, baseline = (
        compose_with([*RUNTIME, f"experiment={name}"]) for name in ("lvis_rare", "lvis_baseline")
    )
    assert rare.synthesis.service is not None and rare.synthesis.synthetic_ratio > 0
    assert baseline.synthesis.service is None and baseline.synthesis.synthetic_ratio == 0
    assert rare.model == baseline.model and rare.optim == baseline.optim and rare.trainer == baseline.trainer
