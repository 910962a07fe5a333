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


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a photo of a single {name}, {definition}, on {background}", "a photo of a single kite, on sand"),
        ("{definition}, a {name}", "a kite"),
        ("a {name} ({background})", "a kite (sand)"),
    ],
)
def test_a_missing_definition_leaves_the_rest_as_it_is(template, text):
    builder = PromptBuilder(templates=[template], backgrounds=["sand"])
    (prompt,) = builder.build([Category(3, "kite")], random.Random(0))
    assert (prompt.text, prompt.name, prompt.definition_span) == (text, "kite", None)


def test_templates_synonyms_definition_and_background_go_together():
    builder = PromptBuilder(
        templates=["{definition}: one {name} on {background}", "on {background} a {name}, {definition}"],
        backgrounds=["grass", "sand"],
        use_synonyms=True,
    )
    texts = set()
    for seed in range(40):
        (prompt,) = builder.build([BAT], random.Random(seed))
        assert prompt.text[slice(*prompt.definition_span)] == "nocturnal mammal"
        assert prompt.name in ("bat (animal)", "flying mouse")
        texts.add(prompt.text)
    assert len(texts) == 2 * 2 * 2
    assert "nocturnal mammal: one flying mouse on sand" in texts
    assert "on grass a bat (animal), nocturnal mammal" in texts


def test_a_class_without_synonyms_keeps_its_name():
    (prompt,) = PromptBuilder(templates=["a {name}"], use_synonyms=True).build([CUP], random.Random(0))
    assert prompt.text == "a cup"


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
