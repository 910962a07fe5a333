import json
import os
from pathlib import Path

import pytest
from transformers import CLIPTokenizerFast

from mflight.data.categories import Category
from mflight.diffusion.tokens import tokenize_plain, tokenize_prompt
from mflight.synthesis.prompts import PromptBuilder
from mflight.synthesis.request import Prompt

REFERENCE = Path(os.environ.get("MFLIGHT_REFERENCE", Path(__file__).parents[4] / "shared" / "reference"))
has_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the CLIP vocabulary of MFLIGHT_REFERENCE is absent"
)


@pytest.fixture(scope="module")
def clip():
    return CLIPTokenizerFast.from_pretrained(REFERENCE / "tiny-sd" / "tokenizer")


def prompt_of(name, definition="", template="a photo of a single {name}, {definition}", **settings):
    builder = PromptBuilder(templates=[template], **settings)
    return builder.build([Category(1, name, definition)], draws=None)[0]


def attended(tokenizer, prompt, rule="name", max_length=77):
    tokenized = tokenize_prompt(tokenizer, prompt, max_length=max_length, rule=rule)
    return [tokenizer.decode([tokenized.input_ids[place]]).strip() for place in tokenized.attended_tokens]


def letters(text):
    return "".join(character for character in text.lower() if character.isalnum())


@has_reference
def test_attended_tokens_spell_the_name_of_every_lvis_category(clip):
    categories = json.loads((REFERENCE / "lvis_v1_categories.json").read_text())
    assert len(categories) == 1203
    for category in categories:
        prompt = prompt_of(category["name"], category["def"])
        pieces = attended(clip, prompt)
        assert letters("".join(pieces)) == letters(category["name"]), category["name"]
        assert all(letters(piece) for piece in pieces), category["name"]
        assert letters("".join(attended(clip, prompt, "last"))) == letters(pieces[-1])


@has_reference
@pytest.mark.parametrize(
    ("name", "rule", "expected"),
    [
        ("arctic_(type_of_shoe)", "name", ["arctic", "type", "of", "shoe"]),
        ("arctic_(type_of_shoe)", "last", ["shoe"]),
        ("arctic_(type_of_shoe)", "published", ["shoe"]),
        ("arctic_(type_of_shoe)", "head_noun", ["arctic"]),
        ("bat_(animal)", "head_noun", ["bat"]),
        ("monitor_(computer_equipment) computer_monitor", "head_noun", ["monitor"]),
        ("table-tennis_table", "last", ["table"]),
    ],
)
def test_rule_chooses_tokens(clip, name, rule, expected):
    assert attended(clip, prompt_of(name, "a thing"), rule) == expected


@has_reference
@pytest.mark.parametrize("name", ["spatula", "table-tennis_table"])
def test_published_rule_takes_an_earlier_piece_and_ours_does_not(clip, name):
    prompt = prompt_of(name, "a thing")
    ours = tokenize_prompt(clip, prompt, max_length=77, rule="last").attended_tokens
    published = tokenize_prompt(clip, prompt, max_length=77, rule="published").attended_tokens
    assert published < ours


@has_reference
def test_comma_joined_with_a_parenthesis_is_not_attended(clip):
    prompt = prompt_of("bat_(animal)", "a mammal")
    tokenized = tokenize_prompt(clip, prompt, max_length=77)
    assert tokenized.attended_tokens == (6, 8)
    assert clip.decode([tokenized.input_ids[9]]) == "),"


@has_reference
def test_long_definition_is_cut_and_what_follows_it_survives(clip):
    prompt = prompt_of(
        "puffin",
        "bird " * 100,
        "a photo of {name}, {definition}, {background}",
        backgrounds=["on a beach"],
    )
    tokenized = tokenize_prompt(clip, prompt, max_length=77)
    assert len(tokenized.input_ids) == 77
    text = clip.decode(tokenized.input_ids, skip_special_tokens=True)
    assert text.startswith("a photo of puffin") and text.endswith("on a beach")
    assert text.count("bird") == 75 - len("a photo of puffin , , on a beach".split())
    assert attended(clip, prompt) == ["puffin"]


@has_reference
def test_default_template_is_cut_as_stock_truncation_does(clip):
    prompt = prompt_of("puffin", "a seabird with an uncommonly colourful beak " * 20)
    stock = clip(prompt.text, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert list(tokenize_prompt(clip, prompt, max_length=77).input_ids) == stock


def test_name_beyond_the_encoder_is_refused(tiny_pipeline):
    text = "a " * 40 + "cup"
    with pytest.raises(ValueError, match=r"text encoder's 32, got places \[41\] for 'cup'"):
        tokenize_prompt(tiny_pipeline.tokenizer, Prompt(text, (80, 83)), max_length=32)


def test_name_without_letters_attends_to_what_there_is(tiny_pipeline):
    tokenized = tokenize_prompt(tiny_pipeline.tokenizer, Prompt("a photo !", (8, 9)), max_length=32)
    assert tokenized.attended_tokens == (3,)


def test_plain_text_is_cut_and_padded(tiny_pipeline):
    tokenizer = tiny_pipeline.tokenizer
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenize_plain(tokenizer, "", max_length=5) == (begin, end, end, end, end)
    cup = tokenizer.convert_tokens_to_ids("cup</w>")
    assert tokenize_plain(tokenizer, "cup cup cup cup", max_length=5) == (begin, cup, cup, cup, end)
