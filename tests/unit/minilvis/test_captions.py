from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from mflight.minilvis.captions import MAX_LENGTH, spoken, write_caption
from mflight.minilvis.species import SPECIES
from mflight.minilvis.textures import BACKGROUNDS

MINI_SD = Path(__file__).parents[3] / "conf" / "diffusion" / "mini_sd.yaml"


@pytest.mark.parametrize("num_objects", [1, 2])
def test_name_spans_mark_the_names(num_objects):
    draws = np.random.default_rng(0)
    for _ in range(60):
        objects = [SPECIES[i] for i in draws.integers(len(SPECIES), size=num_objects)]
        caption = write_caption(objects, "sand", draws)
        assert [caption.text[begin:end] for begin, end in caption.name_spans] == [spoken(s) for s in objects]


def test_a_caption_of_three_objects_is_refused():
    with pytest.raises(ValueError, match="got 3"):
        write_caption(list(SPECIES[:3]), "sand", np.random.default_rng(0))


def test_most_names_take_several_pieces(tokenizer):
    pieces = [len(tokenizer.tokenize(spoken(species))) for species in SPECIES]
    assert np.mean(np.array(pieces) > 1) > 0.8


def test_no_prompt_of_the_mini_templates_is_cut(tokenizer):
    builder = OmegaConf.load(MINI_SD).prompt_builder
    assert set(builder.backgrounds) == set(BACKGROUNDS)
    for template in builder.templates:
        for species in SPECIES:
            for background in builder.backgrounds:
                prompt = template.format(
                    name=spoken(species), definition=species.definition, background=background
                )
                assert len(tokenizer(prompt).input_ids) <= MAX_LENGTH, prompt


def test_no_training_caption_is_cut(tokenizer):
    draws = np.random.default_rng(1)
    for _ in range(300):
        objects = [SPECIES[i] for i in draws.integers(len(SPECIES), size=draws.integers(1, 3))]
        caption = write_caption(objects, list(BACKGROUNDS)[draws.integers(len(BACKGROUNDS))], draws)
        assert len(tokenizer(caption.text).input_ids) <= MAX_LENGTH, caption.text


def test_the_tokenizer_has_the_form_of_clip(tokenizer):
    ids = tokenizer("A disc", padding="max_length").input_ids
    assert len(ids) == tokenizer.model_max_length == MAX_LENGTH
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<|startoftext|>", "<|endoftext|>"]
    assert ids == tokenizer("a DISC", padding="max_length").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a disc"
