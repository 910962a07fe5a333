from collections import Counter

from mflight.minilvis.outlines import OUTLINE_NAMES
from mflight.minilvis.species import NUM_BREEDS, NUM_HUES, PATTERNS, SPECIES


def test_there_are_24_classes_a_third_of_each_frequency():
    assert len(SPECIES) >= 24
    counts = Counter(species.frequency for species in SPECIES)
    assert counts == dict.fromkeys(("rare", "common", "frequent"), len(SPECIES) // 3)


def test_ids_names_definitions_and_outlines_are_each_ones_own():
    assert [species.category_id for species in SPECIES] == list(range(1, len(SPECIES) + 1))
    for values in zip(*((s.name, s.definition, s.outline) for s in SPECIES), strict=True):
        assert len(set(values)) == len(SPECIES)
    assert {species.outline for species in SPECIES} <= set(OUTLINE_NAMES)


def test_every_breed_belongs_to_one_class_only():
    breeds = [breed for species in SPECIES for breed in species.breeds]
    assert len(set(breeds)) == len(breeds) == NUM_BREEDS * len(SPECIES)
    assert all(0 <= breed.hue < NUM_HUES and breed.pattern in PATTERNS for breed in breeds)


def test_the_breeds_of_a_class_differ_in_hue_and_in_pattern():
    for species in SPECIES:
        assert len({breed.hue for breed in species.breeds}) == NUM_BREEDS
        assert len({breed.pattern for breed in species.breeds}) == NUM_BREEDS
