"""Balanced, captioned scenes on which the mini checkpoint is trained, as Stable Diffusion was on the web."""

import math

import numpy as np

from mflight.minilvis.captions import Caption, write_caption
from mflight.minilvis.scene import Placement, Scene, draw_placement, draw_scene
from mflight.minilvis.species import SPECIES, Species
from mflight.minilvis.textures import BACKGROUNDS

SIDES_PX = (48, 56, 64, 72)
"""Sides of the training scenes: the regions of a jittered mosaic have such sides."""

ONE_OBJECT_SHARE = 0.7
RADIUS_RATIO_RANGE = (0.27, 0.47)
"""Radius of an object that is alone, over the scene's shorter side."""


def draw_size(draws: np.random.Generator) -> tuple[int, int]:
    """Choose ``(H, W)`` in px."""
    return SIDES_PX[draws.integers(len(SIDES_PX))], SIDES_PX[draws.integers(len(SIDES_PX))]


def draw_captioned_scene(
    size_hw: tuple[int, int],
    draws: np.random.Generator,
    *,
    one_object_share: float = ONE_OBJECT_SHARE,
    radius_ratio_range: tuple[float, float] = RADIUS_RATIO_RANGE,
) -> tuple[Scene, Caption]:
    """Draw one or two objects of any classes and breeds, all equally likely, with their caption.

    Args:
        size_hw: ``(H, W)`` of the scene, in px.
        draws: the source of everything.
        one_object_share: how often the scene holds one object only, as the regions of a mosaic do.
        radius_ratio_range: radius of an object that is alone, over the scene's shorter side.

    Returns:
        the scene, and its caption; ``caption.name_spans`` follows the order of ``scene.placements``.

    """
    side = min(size_hw)
    background = list(BACKGROUNDS)[draws.integers(len(BACKGROUNDS))]
    species = [SPECIES[draws.integers(len(SPECIES))]]
    if draws.random() < one_object_share:
        low, high = radius_ratio_range
        placements = [draw_placement(species[0], size_hw, (low * side, high * side), draws)]
    else:
        species.append(SPECIES[draws.integers(len(SPECIES))])
        placements = [draw_placement(species[0], size_hw, (0.18 * side, 0.28 * side), draws)]
        placements.append(_draw_apart(placements[0], species[1], size_hw, draws))
    return draw_scene(placements, background, size_hw, draws), write_caption(species, background, draws)


def _draw_apart(
    first: Placement, species: Species, size_hw: tuple[int, int], draws: np.random.Generator
) -> Placement:
    """Draw a second object that keeps clear of the first, as far as twenty trials find a place."""
    side = min(size_hw)
    for _ in range(20):
        second = draw_placement(species, size_hw, (0.18 * side, 0.28 * side), draws)
        if math.dist(first.center_xy, second.center_xy) > 0.95 * (first.radius_px + second.radius_px):
            break
    return second
