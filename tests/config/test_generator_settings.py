"""docs/generator.md against the configs and constructors: each key exists, each default is what runs."""

import json
import re

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mflight.detection.segment_anything import SegmentAnything
from tests.config.test_configs import CONF, RUNTIME, compose_with
from tests.unit.detection.tiny_sam import save_tiny_sam
from tests.unit.synthesis.squares import categories

ROW = re.compile(
    r"^\| `(?P<key>[a-z_.]+)` \| `(?P<default>.+?)` \| (`(?P<published>.+?)`|-)(?P<star> \*)? \|"
)
TEXT, SDXL_TEXT = (CONF.parent / "docs" / "generator.md").read_text().split("\n## Stable Diffusion XL\n")
ROWS = [match for line in TEXT.splitlines() if (match := ROW.match(line))]
SDXL_ROWS = re.findall(r"^\| `(.+?)` \| `(.+?)` \| `(.+?)` \|$", SDXL_TEXT, re.MULTILINE)
LABELER, FILTER = "diffusion.synthesizer.labeler", "diffusion.synthesizer.region_filter"
PROMPTS = "diffusion.prompt_builder"


def value_of(cfg: DictConfig, key: str) -> object:
    """The value of a key that the config spells out."""
    value = OmegaConf.select(cfg, key, throw_on_missing=True, default=KeyError)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@pytest.fixture(scope="module")
def mini():
    return compose_with(RUNTIME)


@pytest.fixture(scope="module")
def lvis_rare():
    return compose_with([*RUNTIME, "experiment=lvis_rare"])


def test_the_table_is_read():
    assert len(ROWS) == 65 and len(SDXL_ROWS) == 7


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["key"])
def test_a_row_tells_the_default_and_lvis_rare_keeps_the_published_value(row, mini, lvis_rare):
    assert value_of(mini, row["key"]) == yaml.safe_load(row["default"])
    if row["published"] is not None:
        is_published = value_of(lvis_rare, row["key"]) == yaml.safe_load(row["published"])
        assert is_published == (row["star"] is None)


def test_the_sentence_above_the_table_tells_what_lvis_rare_sets_instead_of_the_starred_values(lvis_rare):
    told = re.search(r"marked \*: there ours are (.+?)\.\s", TEXT, re.DOTALL).group(1)
    ours = [value_of(lvis_rare, row["key"]) for row in ROWS if row["star"]]
    assert [yaml.safe_load(value) for value in re.findall(r"`(.+?)`", told)] == ours


def test_the_table_of_sdxl_tells_all_that_it_sets_otherwise():
    sd14, sdxl = (compose_with([*RUNTIME, f"diffusion={name}"]) for name in ("sd14", "sdxl"))
    for key, *values in SDXL_ROWS:
        assert [value_of(cfg, key) for cfg in (sd14, sdxl)] == [yaml.safe_load(value) for value in values]
    ours, theirs = (dict(leaves(OmegaConf.to_container(cfg.diffusion))) for cfg in (sd14, sdxl))
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert {f"diffusion.{key}" for key in differing} == {key for key, *_ in SDXL_ROWS}


def leaves(node: object, place: str = ""):
    """Values by dotted keys, interpolations as they are written."""
    if not isinstance(node, dict):
        yield place, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{place}.{key}" if place else key)


@pytest.mark.parametrize(
    "settings",
    [
        {
            LABELER: {"threshold": 0.4, "num_bilateral_passes": 0},
            FILTER: {"max_components": 3, "rescue": True, "area_ratio_range": (0.1, 0.9)},
            PROMPTS: {"use_synonyms": True, "templates": ("a {name}", "one {name}")},
        },
        {LABELER: {"threshold": "otsu", "num_bilateral_passes": 3}, PROMPTS: {"backgrounds": ("sea",)}},
    ],
)
def test_settings_on_the_command_line_reach_their_objects(settings):
    overrides = [
        f"{node}.{name}={json.dumps(value)}" for node in settings for name, value in settings[node].items()
    ]
    cfg = compose_with([*RUNTIME, *overrides])
    for node, expected in settings.items():
        built = instantiate(OmegaConf.select(cfg, node), _convert_="all")
        assert {name: getattr(built, name) for name in expected} == expected


def test_scale_range_and_background_reach_transform_and_stream():
    cfg = compose_with([*RUNTIME, "synthesis.scale_range=[0.25,1.0]", "synthesis.background_loss=false"])
    assert instantiate(cfg.datamodule.downscale).scale_range == (0.25, 1.0)
    assert instantiate(cfg.synthesis.stream).keywords["background_loss"] is False


def test_only_a_run_that_draws_writes_into_the_pool():
    cfgs = [compose_with([*RUNTIME, f"synthesis={name}"]) for name in ("replay", "online")]
    assert [instantiate(cfg.synthesis.stream).keywords["publish"] for cfg in cfgs] == [False, True]


def test_grids_guidance_and_negative_prompts_reach_the_requests():
    overrides = [
        "grids=[[2,3]]",
        "num_regions=[]",
        "negative_prompts=[blurred]",
        "guidance_scale_range=[2,8]",
    ]
    cfg = compose_with([*RUNTIME, *(f"synthesis.planner.{override}" for override in overrides)])
    planner = instantiate(cfg.synthesis.service.planner, categories=categories(), _convert_="all")
    request = planner.request(0)
    assert request.layout.canvas_hw == (128, 192) and len(request.prompts) == 6
    assert request.negative_prompts == ("blurred",) * 6
    assert (
        all(2 <= scale <= 8 for scale in request.guidance_scales) and len(set(request.guidance_scales)) == 6
    )


def test_a_sam_checkpoint_by_setting_redraws_the_masks(tmp_path):
    checkpoint = save_tiny_sam(tmp_path / "sam")
    for name in ("mini_sd", "sd14"):  # which the others inherit
        cfg = compose_with([*RUNTIME, f"diffusion={name}", f"diffusion.refiner_checkpoint={checkpoint}"])
        refiner = instantiate(cfg.diffusion.synthesizer.labeler).refiner
        assert isinstance(refiner, SegmentAnything) and refiner.checkpoint == str(checkpoint)
    without = instantiate(compose_with(RUNTIME).diffusion.synthesizer.labeler)
    assert without.refiner is None
