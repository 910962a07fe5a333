import json
from pathlib import Path

import pytest
from hydra.errors import InstantiationException

from mflight.minilvis.checkpoint import checkpoint_folder
from mflight.minilvis.species import SPECIES
from mflight.mistakes import tell
from mflight.synthesis.generator_check import check_generator
from tests.unit.diffusion.tiny_checkpoint import save_tiny_checkpoint
from tests.unit.synthesis.squares import CATEGORIES, PLANNER, SYNTHESIZER


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("check") / "sd")


def synthesizer(checkpoint, **settings):
    return {
        "_target_": "mflight.synthesis.synthesizer.MosaicSynthesizer",
        "pipeline": {
            "_target_": "mflight.diffusion.pipeline.load_pipeline",
            "checkpoint": str(checkpoint),
            "device": "auto",
        },
        "labeler": {"_target_": "mflight.synthesis.labeler.AttentionLabeler"},
        "region_filter": {"_target_": "mflight.synthesis.filters.RegionFilter"},
        "attention": {"_target_": "mflight.diffusion.attention.AttentionSettings", "levels": [0, 1]},
        **settings,
    }


def know(checkpoint, names):
    (checkpoint / "classes.json").write_text(json.dumps(names))


@pytest.fixture(autouse=True)
def forget(checkpoint):
    yield
    (checkpoint / "classes.json").unlink(missing_ok=True)


def told(*args, **kwargs):
    with pytest.raises((InstantiationException, ValueError, OSError)) as caught:
        check_generator(*args, **kwargs)
    return tell(caught.value)


def test_what_can_be_drawn_is_planned(checkpoint):
    planner = check_generator(PLANNER, synthesizer(checkpoint))
    assert planner.request(0).names
    assert check_generator(PLANNER, SYNTHESIZER).request(0) == planner.request(0)  # somebody's own


def test_the_mini_checkpoint_knows_its_species():
    assert json.loads((Path(checkpoint_folder()) / "classes.json").read_text()) == [s.name for s in SPECIES]


def test_unknown_classes_are_refused_by_name_with_the_settings_that_help(checkpoint):
    know(checkpoint, ["Sea horse", "kite", "zebra"])
    sentence = told(PLANNER, synthesizer(checkpoint))
    assert f"the checkpoint {checkpoint} can draw 3 classes only, and 2 of the 4 wanted" in sentence
    assert "cup, bolt. Name" in sentence and "diffusion.checkpoint=" in sentence
    check_generator(PLANNER, synthesizer(checkpoint), "draw")
    assert "unknown_classes must be one of ('refuse', 'draw'), got 'maybe'" in told(
        PLANNER, synthesizer(checkpoint), "maybe"
    )


def test_names_are_compared_not_ids_and_only_of_what_is_wanted(checkpoint):
    know(checkpoint, ["sea_horse", "CUP", "bolt", "kite"])
    renumbered = [{**entry, "id": entry["id"] + 100} for entry in CATEGORIES]
    planner = {**PLANNER, "categories": {**PLANNER["categories"], "entries": renumbered}}
    check_generator(planner, synthesizer(checkpoint))
    know(checkpoint, ["sea_horse", "bolt"])  # the rare ones
    check_generator({**PLANNER, "partner_frequencies": ["rare"]}, synthesizer(checkpoint))


@pytest.mark.parametrize(
    ("planner", "settings", "message"),
    [
        (
            {"rule": "nonsense"},
            {},
            "synthesis.planner.rule is refused: .*'published' or 'inverse_frequency', got 'nonsense'",
        ),
        ({"main_frequencies": []}, {}, r"no class is of main_frequencies=\[\]: .*rule=inverse_frequency"),
        ({"stride_px": 2, "region_hw": [34, 34]}, {}, "multiple"),
        ({}, {"num_inference_steps": 0}, "diffusion.synthesizer.num_inference_steps is refused: .*, got 0"),
        ({}, {"attention": {"levels": [7]}}, r"levels must hold one of \[0, 1\].*got \(7,\)"),
        ({}, {"pipeline": {"checkpoint": "nowhere/at/all"}}, "no folder 'nowhere/at/all'"),
        ({}, {"pipeline": {"scheduler": "Nonsense"}}, "got 'Nonsense'"),
        ({}, {"labeler": {"refiner": {"checkpoint": "nowhere/at/all"}}}, "no SAM checkpoint: nowhere/at/all"),
    ],
)
def test_what_cannot_be_drawn_is_told_without_loading_anything(checkpoint, planner, settings, message):
    config = synthesizer(checkpoint)
    for name, values in settings.items():
        config[name] = {**config[name], **values} if isinstance(values, dict) else values
    if "refiner" in config["labeler"]:
        config["labeler"]["refiner"]["_target_"] = "mflight.detection.segment_anything.load_refiner"
    import re

    sentence = told({**PLANNER, **planner}, config)
    assert re.search(message, sentence), sentence
