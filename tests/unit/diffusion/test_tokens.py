import json

import pytest
from transformers import CLIPTokenizerFast

from mflight.data.categories import Category
from mflight.diffusion.tokens import tokenize_plain, tokenize_prompt
from mflight.synthesis.prompts import PromptBuilder
from mflight.synthesis.request import Prompt
from tests.reference import REFERENCE

CATEGORIES = REFERENCE / "lvis_v1_categories.json"
has_categories = pytest.mark.skipif(
    not CATEGORIES.is_file(), reason="the LVIS categories of MFLIGHT_REFERENCE are absent"
)


def prompt_of(name, definition="", template="a photo of a single {name}, {definition}", **settings):
    builder = PromptBuilder(templates=[template], **settings)
    return builder.build([Category(1, name, definition)], draws=None)[0]


def attended(tokenizer, prompt, rule="name", max_length=77):
    tokenized = tokenize_prompt(tokenizer, prompt, max_length=max_length, rule=rule)
    return [tokenizer.decode([tokenized.input_ids[place]]).strip() for place in tokenized.attended_tokens]


def letters(text):
    return "".join(character for character in text.lower() if character.isalnum())


def spoken(name):
    return name.replace("_", " ").lower()


def squeezed(text):
    return "".join(text.split())


def lvis_categories():
    categories = json.loads(CATEGORIES.read_text())
    assert len(categories) == 1203
    return categories


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the checkpoint of MFLIGHT_REFERENCE is absent")
def test_vocabulary_is_that_of_stable_diffusion(clip):
    assert clip.get_vocab() == CLIPTokenizerFast.from_pretrained(REFERENCE / "tiny-sd/tokenizer").get_vocab()


@has_categories
def test_attended_tokens_spell_the_name_of_every_lvis_category(clip):
    for category in lvis_categories():
        prompt = prompt_of(category["name"], category["def"])
        tokenized = tokenize_prompt(clip, prompt, max_length=77)
        ids, places = tokenized.input_ids, tokenized.attended_tokens
        pieces = [clip.decode([ids[place]]).strip() for place in places]
        assert letters("".join(pieces)) == letters(category["name"]), category["name"]
        assert all(letters(piece) for piece in pieces), category["name"]
        assert clip.decode(ids[1 : places[0]]) == "a photo of a single", category["name"]
        named = clip.decode(ids[places[0] : places[-1] + 1])  # with the hyphens and parentheses inside
        assert squeezed(named) == squeezed(spoken(category["name"]).rstrip(")")), category["name"]


@has_categories
def test_no_name_of_lvis_is_cut_by_a_long_definition(clip):
    for category in lvis_categories():
        definition = f"{category['def']} {'and so on ' * 25}"
        prompt = prompt_of(category["name"], definition, "{definition}: a photo of a single {name}")
        tokenized = tokenize_prompt(clip, prompt, max_length=77)
        ids = tokenized.input_ids
        assert len(ids) == 77 and ids.index(clip.eos_token_id) == 76
        pieces = [clip.decode([ids[place]]) for place in tokenized.attended_tokens]
        assert letters("".join(pieces)) == letters(category["name"])
        framed = squeezed(f": a photo of a single {spoken(category['name'])}")
        assert squeezed(clip.decode(ids[1:-1])).endswith(framed), category["name"]


@pytest.mark.parametrize(
    ("name", "rule", "expected"),
    [
        ("arctic_(type_of_shoe)", "name", ["arctic", "type", "of", "shoe"]),
        ("arctic_(type_of_shoe)", "last", ["shoe"]),
        ("arctic_(type_of_shoe)", "published", ["shoe"]),
        ("arctic_(type_of_shoe)", "head_noun", ["arctic"]),
        ("bat_(animal)", "head_noun", ["bat"]),
        ("monitor_(computer_equipment) computer_monitor", "head_noun", ["monitor"]),
        ("mouse_(computer_equipment)", "head_noun", ["mouse"]),
        ("computer_monitor", "head_noun", ["monitor"]),
        ("table-tennis_table", "head_noun", ["table"]),
        ("T-shirt", "head_noun", ["t", "shirt"]),
        ("table-tennis_table", "last", ["table"]),
        ("table-tennis_table", "name", ["table", "tennis", "table"]),
        ("spatula", "name", ["sp", "atul", "a"]),
        ("computer_monitor", "last", ["monitor"]),
    ],
)
def test_rule_chooses_tokens(clip, name, rule, expected):
    assert attended(clip, prompt_of(name, "a thing"), rule) == expected


def test_head_noun_is_the_last_word_and_no_earlier_piece_of_it(clip):
    prompt = prompt_of("table-tennis_table", "a thing")
    by_name = tokenize_prompt(clip, prompt, max_length=77).attended_tokens
    by_head = tokenize_prompt(clip, prompt, max_length=77, rule="head_noun").attended_tokens
    assert by_head == by_name[-1:]


@pytest.mark.parametrize("name", ["spatula", "table-tennis_table"])
def test_published_rule_takes_an_earlier_piece_and_ours_does_not(clip, name):
    prompt = prompt_of(name, "a thing")
    ours = tokenize_prompt(clip, prompt, max_length=77, rule="last").attended_tokens
    published = tokenize_prompt(clip, prompt, max_length=77, rule="published").attended_tokens
    assert published < ours


def test_comma_joined_with_a_parenthesis_is_not_attended(clip):
    prompt = prompt_of("bat_(animal)", "a mammal")
    tokenized = tokenize_prompt(clip, prompt, max_length=77)
    assert tokenized.attended_tokens == (6, 8)
    assert clip.decode([tokenized.input_ids[9]]) == "),"


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


def test_default_template_is_cut_as_stock_truncation_does(clip):
    prompt = prompt_of("puffin", "a seabird with an uncommonly colourful beak " * 20)
    stock = clip(prompt.text, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert list(tokenize_prompt(clip, prompt, max_length=77).input_ids) == stock


def test_name_beyond_the_encoder_is_refused(tiny_pipeline):
    text = "a " * 40 + "cup"
    with pytest.raises(ValueError, match=r"text encoder's 32, got places \[41\] for 'cup'"):
        tokenize_prompt(tiny_pipeline.text.tokenizers[0], Prompt(text, (80, 83)), max_length=32)


def test_name_without_letters_attends_to_what_there_is(tiny_pipeline):
    tokenized = tokenize_prompt(tiny_pipeline.text.tokenizers[0], Prompt("a photo !", (8, 9)), max_length=32)
    assert tokenized.attended_tokens == (3,)


def test_plain_text_is_cut_and_padded(tiny_pipeline):
    tokenizer = tiny_pipeline.text.tokenizers[0]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenize_plain(tokenizer, "", max_length=5) == (begin, end, end, end, end)
    cup = tokenizer.convert_tokens_to_ids("cup</w>")
    assert tokenize_plain(tokenizer, "cup cup cup cup", max_length=5) == (begin, cup, cup, cup, end)
