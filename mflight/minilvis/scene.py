"""Draw scenes of the MiniLVIS world: objects with their masks on a textured background."""

from dataclasses import dataclass

import numpy as np

from mflight.minilvis.outlines import NUM_ANGLES, outline, radius_table
from mflight.minilvis.species import Species
from mflight.minilvis.textures import BACKGROUNDS, breed_colours, pattern_share

Draws = np.random.Generator


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how one object stands: centre and radius in px, rotation in radians, width over height."""

    species: Species
    breed_index: int
    center_xy: tuple[float, float]
    radius_px: float
    rotation: float
    aspect: float
    is_mirrored: bool

    def to_local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn pixel coordinates into object coordinates ``(u, v)``, in radii of the object."""
        dx, dy = (x - self.center_xy[0]) / self.radius_px, (y - self.center_xy[1]) / self.radius_px
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        u, v = cos * dx + sin * dy, -sin * dx + cos * dy
        return u / self._stretch[0], v / self._stretch[1]

    @property
    def polygon(self) -> np.ndarray:
        """The outline on the image, ``float64[K, 2]`` in px (x, y)."""
        local = outline(self.species.outline) * self._stretch
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        turned = local @ np.array([[cos, sin], [-sin, cos]])
        return turned * self.radius_px + self.center_xy

    @property
    def _stretch(self) -> np.ndarray:
        root = np.sqrt(self.aspect)
        return np.array([-root if self.is_mirrored else root, 1.0 / root]) / max(root, 1.0 / root)


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn image ``uint8[H, W, 3]`` with the visible mask ``bool[H, W]`` of each object."""

    image: np.ndarray
    background: str
    placements: tuple[Placement, ...]
    masks: tuple[np.ndarray, ...]
    whole_masks: tuple[np.ndarray, ...]


def draw_placement(
    species: Species, size_hw: tuple[int, int], radius_range_px: tuple[float, float], draws: Draws,
    breed_index: int | None = None,
) -> Placement:  # fmt: skip
    """Choose breed, place, size and pose of one object so that it lies inside the image."""
    radius = draws.uniform(*radius_range_px)
    margin = 0.85 * radius
    center = tuple(
        draws.uniform(min(margin, side / 2), max(side - margin, side / 2)) for side in size_hw[::-1]
    )
    return Placement(
        species=species,
        breed_index=int(draws.integers(len(species.breeds))) if breed_index is None else breed_index,
        center_xy=center,
        radius_px=radius,
        rotation=draws.uniform(-0.6, 0.6),
        aspect=draws.uniform(0.8, 1.25),
        is_mirrored=bool(draws.random() < 0.5),
    )


def draw_scene(placements: list[Placement], background: str, size_hw: tuple[int, int], draws: Draws) -> Scene:
    """Draw the objects in order, later ones in front, on a background.

    Args:
        placements: the objects, from back to front.
        background: a name of ``textures.BACKGROUNDS``.
        size_hw: ``(H, W)`` of the image, in px.
        draws: the source of colours, shading and texture.

    Returns:
        the scene; ``masks`` show what is visible, ``whole_masks`` what would be without overlap.

    Raises:
        ValueError: if the background is not known.

    """
    if background not in BACKGROUNDS:
        raise ValueError(f"a background must be one of {sorted(BACKGROUNDS)}, got {background!r}")
    canvas = BACKGROUNDS[background](size_hw, draws)
    whole: list[np.ndarray] = []
    for placement in placements:
        whole.append(_paint(canvas, placement, draws))
    visible, covered = [], np.zeros(size_hw, dtype=bool)
    for mask in reversed(whole):
        visible.append(mask & ~covered)
        covered |= mask
    image = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Scene(image, background, tuple(placements), tuple(reversed(visible)), tuple(whole))


def _paint(canvas: np.ndarray, placement: Placement, draws: Draws) -> np.ndarray:
    """Blend one object into ``canvas`` with a soft edge of one pixel; return its mask ``bool[H, W]``."""
    height, width = canvas.shape[:2]
    (cx, cy), radius = placement.center_xy, placement.radius_px
    y0, y1 = max(int(cy - radius) - 1, 0), min(int(cy + radius) + 3, height)
    x0, x1 = max(int(cx - radius) - 1, 0), min(int(cx + radius) + 3, width)
    y, x = np.mgrid[y0:y1, x0:x1] + 0.5
    u, v = placement.to_local(x, y)
    angle = (np.arctan2(v, u) % (2 * np.pi)) * (NUM_ANGLES / (2 * np.pi))
    edge = radius_table(placement.species.outline)[angle.astype(int) % NUM_ANGLES]
    alpha = np.clip((edge - np.hypot(u, v)) * radius + 0.5, 0.0, 1.0)  # about one pixel wide

    breed = placement.species.breeds[placement.breed_index]
    own, second = breed_colours(breed, draws)
    colour = np.where(pattern_share(breed.pattern, u, v)[..., None], second, own)
    light = draws.uniform(0, 2 * np.pi)
    shade = 1.0 + 0.2 * (np.cos(light) * (x - cx) + np.sin(light) * (y - cy)) / radius
    patch = canvas[y0:y1, x0:x1]
    patch += alpha[..., None] * (colour * shade[..., None] - patch)
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = alpha >= 0.5
    return mask
