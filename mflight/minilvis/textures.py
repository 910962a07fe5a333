"""Colours of the MiniLVIS world: named backgrounds, and the inner patterns of the objects."""

import colorsys
from collections.abc import Callable

import numpy as np

from mflight.minilvis.species import NUM_HUES, Breed

Draws = np.random.Generator

CREAM = np.array([0.96, 0.94, 0.86])


def _smooth_noise(size_hw: tuple[int, int], cell_hw: tuple[int, int], draws: Draws) -> np.ndarray:
    """Return ``float64[H, W]`` in [-1, 1]: random values on a coarse grid, interpolated linearly."""
    height, width = size_hw
    rows, cols = height // cell_hw[0] + 2, width // cell_hw[1] + 2
    coarse = draws.uniform(-1.0, 1.0, (rows, cols))
    y, x = np.arange(height) / cell_hw[0], np.arange(width) / cell_hw[1]
    row, col = y.astype(int), x.astype(int)
    fy, fx = (y - row)[:, None], (x - col)[None]
    top = coarse[row][:, col] * (1 - fx) + coarse[row][:, col + 1] * fx
    bottom = coarse[row + 1][:, col] * (1 - fx) + coarse[row + 1][:, col + 1] * fx
    return top * (1 - fy) + bottom * fy


def _tint(colour: tuple[float, float, float], value: np.ndarray, strength: float) -> np.ndarray:
    return np.asarray(colour) * (1.0 + strength * value)[..., None]


def _grass(size_hw: tuple[int, int], draws: Draws) -> np.ndarray:
    blades = _smooth_noise(size_hw, (12, 4), draws)
    return _tint((0.33, 0.52, 0.24), 0.6 * blades + 0.4 * _smooth_noise(size_hw, (32, 32), draws), 0.35)


def _sand(size_hw: tuple[int, int], draws: Draws) -> np.ndarray:
    return _tint((0.82, 0.72, 0.54), _smooth_noise(size_hw, (6, 20), draws), 0.14)


def _water(size_hw: tuple[int, int], draws: Draws) -> np.ndarray:
    y = np.mgrid[: size_hw[0], : size_hw[1]][0]
    bend = 3.0 * _smooth_noise(size_hw, (32, 24), draws)
    waves = np.sin(2 * np.pi * (y + bend) / draws.uniform(9.0, 14.0) + draws.uniform(0, 6.28))
    return _tint((0.25, 0.44, 0.62), waves, 0.2)


def _bricks(size_hw: tuple[int, int], draws: Draws) -> np.ndarray:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + draws.integers(0, 48, 2)[:, None, None]
    row = y // 12
    shifted = x + 12 * (row % 2)
    column = shifted // 24
    tone = draws.uniform(-1.0, 1.0, (row.max() + 1, column.max() + 1))[row, column]
    mortar = (y % 12 < 2) | (shifted % 24 < 2)
    return np.where(mortar[..., None], (0.62, 0.58, 0.54), _tint((0.56, 0.33, 0.27), tone, 0.15))


BACKGROUNDS: dict[str, Callable[[tuple[int, int], Draws], np.ndarray]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "bricks": _bricks,
}
"""Background name to a function ``(size_hw, draws) -> float64[H, W, 3]`` in about [0, 1]."""


def breed_colours(breed: Breed, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Draw the two colours (RGB in [0, 1]) of one individual of a breed: its own, and that of its pattern."""
    hue = (breed.hue + draws.uniform(-0.22, 0.22)) / NUM_HUES
    own = np.array(colorsys.hsv_to_rgb(hue % 1.0, draws.uniform(0.7, 0.95), draws.uniform(0.75, 0.95)))
    second = CREAM if breed.pattern in ("dotted", "checked") else own * 0.38
    return own, second


def pattern_share(pattern: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return ``bool`` of the shape of ``u``: where the pattern's second colour shows.

    Args:
        pattern: one of ``species.PATTERNS``.
        u: object coordinate to the right, in radii of the object.
        v: object coordinate downwards, in radii of the object.

    Returns:
        True where the second colour is painted.

    Raises:
        ValueError: if the pattern is not known.

    """
    if pattern == "solid":
        return np.zeros_like(u, dtype=bool)
    if pattern == "striped":
        return np.sin(2 * np.pi * u / 0.52) > 0.15
    if pattern == "dotted":
        du, dv = (u / 0.5) % 1.0 - 0.5, (v / 0.5) % 1.0 - 0.5
        return du**2 + dv**2 < 0.085
    if pattern == "two-tone":
        return v > 0.05
    if pattern == "checked":
        return (np.floor(u / 0.42) + np.floor(v / 0.42)) % 2 > 0
    if pattern == "ringed":
        return np.sin(2 * np.pi * np.hypot(u, v) / 0.5) < -0.1
    raise ValueError(
        f"a pattern must be one of solid, striped, dotted, two-tone, checked, ringed, got {pattern!r}"
    )
