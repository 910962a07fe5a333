"""The classes of MiniLVIS: their names, outlines, frequencies, and the breeds in which each one comes."""

from dataclasses import dataclass
from typing import Literal

Frequency = Literal["rare", "common", "frequent"]
Pattern = Literal["solid", "striped", "dotted", "two-tone", "checked", "ringed"]

NUM_HUES = 12
PATTERNS: tuple[Pattern, ...] = ("solid", "striped", "dotted", "two-tone", "checked", "ringed")
NUM_BREEDS = 3
_FREQUENCIES: tuple[Frequency, ...] = ("frequent", "common", "rare")


@dataclass(frozen=True, slots=True)
class Breed:
    """A look of a class: a hue (0 to ``NUM_HUES`` - 1, around the colour circle) and an inner pattern."""

    hue: int
    pattern: Pattern


@dataclass(frozen=True, slots=True)
class Species:
    """One class of the world. ``breeds`` are pairs of hue and pattern that no other class has."""

    category_id: int
    name: str
    definition: str
    outline: str
    frequency: Frequency
    breeds: tuple[Breed, ...]


_NAMES = (
    ("button", "disc", "a round fastener"),
    ("heart_(toy)", "heart", "a toy with two bumps and a tip"),
    ("star_fruit", "star5", "a fruit with five arms"),
    ("roof_tile", "square", "a flat square"),
    ("doll_house", "house", "a small home with a gable"),
    ("clover", "clover", "a plant with three lobes"),
    ("wine_bottle", "bottle", "a vessel with a neck"),
    ("arrowhead_(sign)", "arrow", "a sign that points"),
    ("goldfish", "fish", "a fish with a tail"),
    ("mushroom", "mushroom", "a cap on a stem"),
    ("crown", "crown", "a headdress with three points"),
    ("hourglass", "hourglass", "a vessel with a waist"),
    ("domino", "bar", "a long flat block"),
    ("throwing_star", "star4", "a blade with four points"),
    ("cogwheel", "cogwheel", "a wheel with teeth"),
    ("eggshell", "egg", "an oval shell"),
    ("kite", "kite", "a toy with four unequal corners"),
    ("willow_leaf", "lens", "a leaf with two tips"),
    ("teardrop", "drop", "a drop with one tip"),
    ("sandwich", "triangle", "a snack with three corners"),
    ("red-cross_sign", "cross", "a sign with four equal arms"),
    ("blossom", "blossom", "a flower with six lobes"),
    ("stop_sign", "octagon", "a sign with eight corners"),
    ("sunburst", "star8", "a disc with eight rays"),
)


def _breeds(index: int) -> tuple[Breed, ...]:
    """Give class ``index`` its three looks: four hues apart, each of another pattern, no pair used twice."""
    return tuple(
        Breed(hue=(5 * index + 4 * breed) % NUM_HUES, pattern=PATTERNS[2 * breed + (index // NUM_HUES) % 2])
        for breed in range(NUM_BREEDS)
    )


SPECIES: tuple[Species, ...] = tuple(
    Species(
        category_id=index + 1,
        name=name,
        definition=definition,
        outline=outline,
        frequency=_FREQUENCIES[index % 3],
        breeds=_breeds(index),
    )
    for index, (name, outline, definition) in enumerate(_NAMES)
)
"""All classes, in the order of their ``category_id``."""
