"""A plain override works for every key: `conf/` spells what constructors default to, and what docs/ names."""

import inspect
import re
import shlex

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from tests.config.test_configs import CONF, RUNTIME, compose_with

MIRRORED = (  # nodes that state the published values, which the constructors have as defaults
    "diffusion.synthesizer.attention",
    "diffusion.synthesizer.labeler",
    "diffusion.synthesizer.region_filter",
    "model",
    "trainer",
    "module.evaluator",
    "synthesis.service",
)
OTHERWISE = {  # and what they set otherwise
    "model": {"backbone", "num_classes", "synthetic_loss_weight", "synthetic_losses", "classification_loss"},
    "trainer": {
        *("max_steps", "max_epochs", "precision", "gradient_clip_val", "log_every_n_steps"),
        *("num_sanity_val_steps", "enable_model_summary", "deterministic", "default_root_dir"),
    },
    "module.evaluator": {"ground_truth"},
    "diffusion.synthesizer.labeler": {"refiner"},
    "synthesis.service": {
        *("pool_dir", "planner", "synthesizer", "devices", "num_threads", "batch_size", "high_water"),
        *("max_bytes", "when_full", "min_free_bytes"),
    },
}
TEXTS = {path.name: path.read_text() for path in (*CONF.parent.glob("docs/*.md"), CONF.parent / "README.md")}
OVERRIDE = re.compile(r"(?<![\w=/.+-])([a-z_]+(?:[./][a-z_]\w*)+)=(\[[^\s`'\"]*\]|[^\s`'\",)|;]*)")
BARE_KEY = re.compile(r"`((?:data|synthesis|diffusion|model|trainer|optim|callbacks|datamodule)\.[a-z_.]+)`")
COMMAND = re.compile(r"^\s*(?:uv run )?(?:python -m mflight\.(\w+)|(?:python )?(train)\.py)\b(.*)$")
NOT_HERE = {"address", "num_generators", "runtime_env", "use_home_gpus"}  # under synthesis/launcher=ray only


@pytest.mark.parametrize("place", MIRRORED)
def test_a_spelled_value_is_the_default_of_the_constructor(place):
    node = OmegaConf.select(compose_with([*RUNTIME, "experiment=lvis_rare", "trainer=default"]), place)
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    for key in (
        set(node) - OTHERWISE.get(place, set()) - {"_target_", "_partial_", "_recursive_", "_convert_"}
    ):
        default, value = parameters[key].default, node[key]
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        assert as_lists(default) == value, f"{place}.{key}"


def as_lists(value):
    return [as_lists(one) for one in value] if isinstance(value, tuple) else value


NAMED = sorted(
    {(key, value or "1") for text in TEXTS.values() for key, value in OVERRIDE.findall(text)}
    | {(key, "null") for text in TEXTS.values() for key in BARE_KEY.findall(text)}
)
GROUPS = [(key, value) for key, value in NAMED if "/" in key and not key.startswith("hydra/launcher")]
COMMANDS = {
    line.strip(): (match[1] or match[2], match[3].partition("#")[0])
    for text in TEXTS.values()
    for line in text.splitlines()
    if (match := COMMAND.match(line))
    and (match[1] or match[2]) in ("train", "generate", "evaluate", "check_data")
}


def test_the_documents_are_read():
    assert len(NAMED) > 60 and len(COMMANDS) > 12


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_an_option_that_a_document_names_can_be_chosen(group, option):
    compose_with([*RUNTIME, f"{group}={option}"])


def test_keys_that_documents_name_can_be_overridden():
    keys_under: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for key, value in NAMED:
        if "/" not in key:
            others = ["synthesis/launcher=ray"] if key.rpartition(".")[2] in NOT_HERE else []
            others += ["model=mask_rcnn_r50_fpn"] if key.startswith("model.backbone.") else []
            keys_under.setdefault(tuple(others), []).append((key, value))
    for others, pairs in keys_under.items():
        cfg = compose_with([*RUNTIME, *others, *(f"{key}={value}" for key, value in pairs)])
        for key, _ in pairs:
            parent, _, name = key.rpartition(".")
            assert name in OmegaConf.select(cfg, parent), key


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_a_document_shows_composes(line):
    root, words = COMMANDS[line]
    overrides = [word for word in shlex.split(words) if "=" in word]
    if root == "train":
        overrides = [*RUNTIME, *(word.split(",")[0] if "[" not in word else word for word in overrides)]
    elif root == "generate" and not any(word.startswith("paths.pool_dir") for word in overrides):
        overrides.append("paths.pool_dir=pools/test")
    compose_with(overrides, root)


def test_the_ten_settings_that_were_refused():
    settings = {
        "synthesis.service.max_restarts": 2,
        "synthesis.service.image_format": "png",
        "synthesis.service.backoff_s": 0.5,
        "trainer.num_nodes": 2,
        "trainer.accumulate_grad_batches": 4,
        "trainer.limit_val_batches": 2,
        "model.box_score_thresh": 0.05,
        "model.max_size": 800,
        "diffusion.synthesizer.region_filter.rescue": True,
        "synthesis.images.poll_s": 0.1,
    }
    cfg = compose_with([*RUNTIME, *(f"{key}={value}" for key, value in settings.items())])
    assert {key: OmegaConf.select(cfg, key) for key in settings} == settings
