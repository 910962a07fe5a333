import dataclasses
import pickle

import pytest
from omegaconf import OmegaConf

from mflight.synthesis.generator_settings import GeneratorSettings
from tests.unit.synthesis.squares import PLANNER, SYNTHESIZER, generator_settings


def test_configs_of_hydra_are_taken_and_built_objects_refused(tmp_path):
    settings = GeneratorSettings(
        pool_dir=tmp_path, planner=OmegaConf.create(PLANNER), synthesizer=OmegaConf.create(SYNTHESIZER)
    )
    assert settings == GeneratorSettings(pool_dir=tmp_path, planner=PLANNER, synthesizer=SYNTHESIZER)
    with pytest.raises(ValueError, match="_recursive_: false"):
        GeneratorSettings(pool_dir=tmp_path, planner=object(), synthesizer=SYNTHESIZER)
    with pytest.raises(ValueError, match="below high_water 4, got 4"):
        generator_settings(tmp_path, high_water=4, low_water=4)
    with pytest.raises(ValueError, match="-3"):
        generator_settings(tmp_path, batch_size=-3)


def test_they_travel_to_another_process_and_never_change(tmp_path):
    settings = generator_settings(tmp_path, devices=["cuda:1", "cuda:2"], high_water=8)
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.high_water = 9


def test_it_tells_which_classes_it_will_draw_before_it_draws(tmp_path):
    # a rare class of two in turn, and three partners of any of four: 1 - (1 - 1/2) (3/4)^3, 1 - (3/4)^3
    frequencies = generator_settings(tmp_path).category_frequencies(num_requests=2000)
    assert [frequencies[c] for c in (2, 9)] == pytest.approx([0.789, 0.789], abs=0.04)
    assert [frequencies[c] for c in (5, 11)] == pytest.approx([0.578, 0.578], abs=0.04)
    assert not list(tmp_path.iterdir())
