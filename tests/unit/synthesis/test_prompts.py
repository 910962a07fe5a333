import random

import pytest
from omegaconf import OmegaConf

from mflight.data.categories import Category
from mflight.synthesis.prompts import PromptBuilder

BAT = Category(1, "bat_(animal)", "nocturnal mammal", synonyms=("bat_(animal)", "flying_mouse"))
CUP = Category(2, "cup", "a small open container")


def test_default_is_the_published_template():
    prompts = PromptBuilder().build([BAT, CUP], random.Random(0))
    assert [prompt.text for prompt in prompts] == [
        "a photo of a single bat (animal), nocturnal mammal",
        "a photo of a single cup, a small open container",
    ]
    assert [prompt.name for prompt in prompts] == ["bat (animal)", "cup"]
    assert prompts[0].text[slice(*prompts[0].definition_span)] == "nocturnal mammal"


def test_background_is_one_for_the_canvas_and_templates_are_drawn_for_each_region():
    builder = PromptBuilder(
        templates=["{background}: one {name}", "{name} {background}"], backgrounds=["on sand", "on grass"]
    )
    seen = set()
    for seed in range(20):
        texts = [prompt.text for prompt in builder.build([CUP] * 6, random.Random(seed))]
        assert len({("sand" in text) for text in texts}) == 1
        seen |= set(texts)
    assert seen == {"on sand: one cup", "on grass: one cup", "cup on sand", "cup on grass"}


def test_synonyms_are_drawn_and_spanned():
    builder = PromptBuilder(templates=["a {name}"], use_synonyms=True)
    names = {builder.build([BAT], random.Random(seed))[0].name for seed in range(20)}
    assert names == {"bat (animal)", "flying mouse"}


def test_nothing_is_drawn_where_there_is_no_choice():
    draws = random.Random(0)
    state = draws.getstate()
    PromptBuilder(backgrounds=["on sand"], use_synonyms=True).build([CUP], draws)
    assert draws.getstate() == state


def test_missing_definition_leaves_no_comma():
    (prompt,) = PromptBuilder().build([Category(3, "kite")], random.Random(0))
    assert prompt.text == "a photo of a single kite" and prompt.definition_span is None


def test_config_nodes_are_accepted():
    node = OmegaConf.create({"templates": ["one {name}"]})
    assert PromptBuilder(**OmegaConf.to_container(node)).templates == ("one {name}",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"templates": ["a photo"]}, r"must hold \{name\}, got 'a photo'"),
        ({"templates": ["{name} {colour}"]}, "got 'colour'"),
        ({"templates": ["{name} {name}"]}, r"\{name\} once, got '\{name\} \{name\}'"),
        ({"templates": ["{name} {background}"]}, "backgrounds is empty"),
        ({"templates": []}, "at least 1 item"),
    ],
)
def test_wrong_templates_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PromptBuilder(**settings)
