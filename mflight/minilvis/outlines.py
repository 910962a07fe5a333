"""The outlines of the MiniLVIS classes: closed curves of unit radius, star-shaped about the origin."""

from collections.abc import Callable
from functools import cache

import numpy as np

NUM_ANGLES = 720
"""Resolution of the radius table of an outline: one entry every half degree."""


def _curve(radius: Callable[[np.ndarray], np.ndarray], num_vertices: int = 72) -> np.ndarray:
    angles = np.linspace(0.0, 2 * np.pi, num_vertices, endpoint=False)
    radii = radius(angles)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _regular(num_corners: int, phase_deg: float = -90.0) -> np.ndarray:
    angles = np.deg2rad(phase_deg) + np.arange(num_corners) * 2 * np.pi / num_corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(num_arms: int, inner_radius: float) -> np.ndarray:
    angles = np.deg2rad(-90.0) + np.arange(2 * num_arms) * np.pi / num_arms
    radii = np.where(np.arange(2 * num_arms) % 2 == 0, 1.0, inner_radius)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _lobes(num_lobes: int, depth: float) -> np.ndarray:
    return _curve(lambda a: 1.0 - depth * (1.0 - np.abs(np.cos(num_lobes * a / 2.0)) ** 0.8), 120)


def _cogwheel(num_teeth: int) -> np.ndarray:
    step = 2 * np.pi / num_teeth
    offsets, radii = np.array([0.02, 0.28, 0.40, 0.88]) * step, np.array([1.0, 1.0, 0.74, 0.74])
    angles = (np.arange(num_teeth)[:, None] * step + offsets).ravel()
    radii = np.tile(radii, num_teeth)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _mirrored(right_half: list[tuple[float, float]]) -> np.ndarray:
    """Close a shape from its right half, given from top to bottom (y points down)."""
    left_half = [(-x, y) for x, y in reversed(right_half) if x > 0]
    return np.array(right_half + left_half, dtype=np.float64)


_HEART = [
    (0, -0.45),
    (0.18, -0.78),
    (0.5, -0.9),
    (0.82, -0.72),
    (0.92, -0.35),
    (0.75, 0.1),
    (0.4, 0.55),
    (0, 1),
]
_FISH = [
    *[(0.95, 0), (0.72, 0.34), (0.3, 0.5), (-0.1, 0.4), (-0.45, 0.16), (-1.0, 0.55)],
    *[(-0.8, 0), (-1.0, -0.55), (-0.45, -0.16), (-0.1, -0.4), (0.3, -0.5), (0.72, -0.34)],
]

_OUTLINES: dict[str, Callable[[], np.ndarray]] = {
    "disc": lambda: _curve(np.ones_like),
    "egg": lambda: _curve(lambda a: 0.74 / (1.0 - 0.28 * np.sin(a)) ** 0.9),
    "lens": lambda: _mirrored(
        [(0, -1.0), (0.22, -0.66), (0.36, -0.3), (0.4, 0), (0.36, 0.3), (0.22, 0.66), (0, 1.0)]
    ),
    "drop": lambda: _mirrored(
        [(0, -1.0), (0.2, -0.5), (0.45, -0.05), (0.58, 0.35), (0.52, 0.7), (0.3, 0.92), (0, 1.0)]
    ),
    "heart": lambda: _mirrored(_HEART),
    "star5": lambda: _star(5, 0.46),
    "star4": lambda: _star(4, 0.32),
    "star8": lambda: _star(8, 0.6),
    "cogwheel": lambda: _cogwheel(9),
    "clover": lambda: _lobes(3, 0.62),
    "blossom": lambda: _lobes(6, 0.4),
    "square": lambda: _regular(4, 45.0),
    "bar": lambda: np.array([(0.42, -1.0), (0.42, 1.0), (-0.42, 1.0), (-0.42, -1.0)]),
    "triangle": lambda: _regular(3),
    "octagon": lambda: _regular(8, 22.5),
    "kite": lambda: _mirrored([(0, -0.75), (0.62, -0.25), (0, 1.0)]),
    "house": lambda: _mirrored([(0, -1.0), (0.85, -0.2), (0.68, -0.2), (0.68, 0.85)]),
    "arrow": lambda: _mirrored([(0, -1.0), (0.8, -0.2), (0.34, -0.08), (0.34, 1.0)]),
    "hourglass": lambda: _mirrored([(0.7, -1.0), (0.16, 0.0), (0.7, 1.0)]),
    "cross": lambda: _mirrored([(0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1)]),
    "fish": lambda: np.add(_FISH, (0.3, 0.0)),
    "bottle": lambda: _mirrored([(0.17, -1.0), (0.17, -0.42), (0.46, -0.1), (0.46, 1.0)]),
    "mushroom": lambda: np.add(
        _mirrored([(0, -0.9), (0.5, -0.75), (0.85, -0.4), (0.95, 0.05), (0.3, 0.08), (0.36, 0.95)]),
        (0.0, 0.2),
    ),
    "crown": lambda: _mirrored([(0, -0.85), (0.36, -0.28), (0.86, -0.8), (0.78, 0.7)]),
}

OUTLINE_NAMES: tuple[str, ...] = tuple(_OUTLINES)


@cache
def outline(name: str) -> np.ndarray:
    """Look up an outline, its farthest corner at radius 1.

    Args:
        name: one of ``OUTLINE_NAMES``.

    Returns:
        ``float64[K, 2]`` (x, y; y points down): the corners in order around the origin.

    Raises:
        ValueError: if the name is not known.

    """
    if name not in _OUTLINES:
        raise ValueError(f"an outline must be one of {sorted(_OUTLINES)}, got {name!r}")
    corners = np.asarray(_OUTLINES[name](), dtype=np.float64)
    return corners / np.linalg.norm(corners, axis=1).max()


@cache
def radius_table(name: str) -> np.ndarray:
    """Return ``float64[NUM_ANGLES]``: the distance from the origin to the outline in each direction.

    Entry ``k`` belongs to the angle ``2 pi k / NUM_ANGLES``. Each ray is cut with every edge of the
    outline; a star-shaped outline is met once.
    """
    corners = outline(name)
    edges = np.roll(corners, -1, axis=0) - corners  # [K, 2]
    angles = 2 * np.pi * np.arange(NUM_ANGLES) / NUM_ANGLES
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None]  # [NUM_ANGLES, 1, 2]
    cross = rays[..., 0] * edges[:, 1] - rays[..., 1] * edges[:, 0]  # [NUM_ANGLES, K]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (corners[:, 0] * edges[:, 1] - corners[:, 1] * edges[:, 0]) / cross
        along = (corners[:, 0] * rays[..., 1] - corners[:, 1] * rays[..., 0]) / cross
    hit = (distance > 0) & (along >= -1e-9) & (along <= 1 + 1e-9)
    return np.where(hit, distance, 0.0).max(axis=1)
