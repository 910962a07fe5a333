"""The bilateral solver: the published outputs, its equations on a small grid, degenerate masks."""

import numpy as np
import pytest

from mflight.functional import bilateral
from mflight.functional.bilateral import BilateralGrid, BilateralSettings, refine_mask
from tests.reference import REFERENCE


def colour_disc(size_hw=(60, 80), noise=6.0, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a green ground with noise, and its true mask."""
    draws = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    truth = (rows - size_hw[0] / 2) ** 2 + (columns - size_hw[1] / 2) ** 2 < (min(size_hw) / 3) ** 2
    image = np.where(truth[..., None], [200, 60, 50], [40, 140, 70]) + draws.normal(0, noise, (*size_hw, 3))
    return image.clip(0, 255).astype(np.uint8), truth


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize("case", sorted(REFERENCE.glob("bilateral*.npz")), ids=lambda path: path.stem)
def test_outputs_of_the_published_program(case):
    with np.load(case) as arrays:
        arrays = {name: arrays[name] for name in arrays.files}
    shape = tuple(arrays["shape"])
    coarse, expected = (
        np.unpackbits(arrays[name], count=np.prod(shape)).reshape(shape).astype(bool)
        for name in ("coarse", "mask")
    )
    mask, softs = refine_mask(arrays["image"], coarse)
    np.testing.assert_array_equal(mask, expected)
    for soft, name in zip(softs, ("soft1", "soft2"), strict=True):
        np.testing.assert_allclose(soft, arrays[name], atol=1e-5 * 255)


def test_the_outline_moves_to_the_edge_of_the_image():
    image, truth = colour_disc()
    coarse = np.roll(truth, (4, -5), axis=(0, 1))
    settings = BilateralSettings(sigma_spatial_px=8.0)
    refined, _ = refine_mask(image, coarse, 2, settings)
    assert iou(coarse, truth) < 0.75
    assert iou(refined, truth) > 0.97


def test_the_second_pass_starts_from_the_binary_result_of_the_first():
    image, truth = colour_disc()
    coarse = np.roll(truth, 5, axis=1)
    once, first = refine_mask(image, coarse, num_passes=1)
    twice, both = refine_mask(image, coarse, num_passes=2)
    again, second = refine_mask(image, once, num_passes=1)
    np.testing.assert_array_equal(both, np.concatenate([first, second]))
    np.testing.assert_array_equal(twice, again)


def test_no_pass_gives_the_mask_back():
    image, truth = colour_disc()
    mask, softs = refine_mask(image, truth.astype(np.uint8) * 255, num_passes=0)
    np.testing.assert_array_equal(mask, truth)
    assert mask.dtype == bool and softs.shape == (0, *truth.shape)


@pytest.mark.parametrize("size_hw", [(1, 1), (5, 40), (60, 80)])
def test_empty_and_full_masks_stay_so(size_hw):
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    empty, softs = refine_mask(image, np.zeros(size_hw, dtype=bool))
    assert not empty.any() and (softs == 0).all()
    full, softs = refine_mask(image, np.ones(size_hw, dtype=bool))
    assert full.all()
    np.testing.assert_allclose(softs, 255, rtol=1e-9)


def test_a_blank_image_gives_finite_values():
    mask = np.zeros((40, 40), dtype=bool)
    mask[:, :20] = True
    refined, softs = refine_mask(np.zeros((40, 40, 3), dtype=np.uint8), mask)
    assert np.isfinite(softs).all()
    assert refined[:, 0].all()


@pytest.mark.parametrize(("self_weight", "num_steps"), [(10.0, 10), (4.0, 3)])
def test_the_system_is_that_of_the_equations(self_weight, num_steps):
    """A = 256 (diag(m) - diag(n) B diag(n)) + diag(splat(c)), from dense matrices."""
    image, _ = colour_disc((20, 24), noise=30.0)
    settings = BilateralSettings(
        sigma_spatial_px=5.0, blur_self_weight=self_weight, num_bistochastize_steps=num_steps
    )
    grid = BilateralGrid(image, settings)
    red, green, blue = np.moveaxis(image.astype(float), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    u = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
    v = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
    rows, columns = np.mgrid[:20, :24]
    cells = (
        np.stack([columns // 5, rows // 5, luma // 16, u // 8, v // 8], axis=-1).reshape(-1, 5).astype(int)
    )
    vertices = np.empty((grid.num_vertices, 5), dtype=int)
    vertices[grid.vertex_of_pixel.ravel()] = cells
    assert len(np.unique(cells, axis=0)) == grid.num_vertices
    np.testing.assert_array_equal(vertices[grid.vertex_of_pixel.ravel()], cells)

    distance = np.abs(vertices[:, None] - vertices[None]).sum(axis=2)
    blur = self_weight * (distance == 0) + (distance == 1)
    num_pixels = grid.splat(np.ones((20, 24)))
    scale = np.ones(len(vertices))
    for _ in range(num_steps):
        scale = np.sqrt(scale * num_pixels / (blur @ scale))
    mass = scale * (blur @ scale)
    expected = 256 * (np.diag(mass) - scale[:, None] * blur * scale) + np.diag(0.999 * num_pixels)
    np.testing.assert_allclose(grid.system.toarray(), expected, rtol=1e-12, atol=1e-12)


def test_converged_answer_solves_the_system():
    image, truth = colour_disc()
    grid = BilateralGrid(image, BilateralSettings(max_iterations=1000, tolerance=1e-10))
    object_pixels = grid.splat(truth)
    solution = grid.smooth(object_pixels)
    np.testing.assert_allclose(grid.system @ solution, 255 * 0.999 * object_pixels, atol=1e-6)


def test_fine_grids_give_the_same_vertices_with_and_without_the_table(monkeypatch):
    image, truth = colour_disc()
    expected = refine_mask(image, truth)[1]
    monkeypatch.setattr(bilateral, "_MAX_TABLE_ENTRIES", 0)
    np.testing.assert_array_equal(refine_mask(image, truth)[1], expected)


def test_errors_name_the_value():
    image, truth = colour_disc()
    with pytest.raises(ValueError, match=r"uint8\[H, W, 3\], got float64\[60, 80, 3\]"):
        refine_mask(image.astype(float), truth)
    with pytest.raises(ValueError, match=r"image's size \(60, 80\), got \(30, 80\)"):
        refine_mask(image, truth[:30])
