import numpy as np
import pytest

from mflight.functional.mask_scores import cut_ratio, edge_ratio, torn_ratio

DISC = np.hypot(*np.mgrid[-20:20, -20:20]) < 11


def painted(mask, inside=(200, 90, 40), outside=(60, 90, 40)):
    image = np.where(mask[..., None], np.uint8(inside), np.uint8(outside))
    return np.clip(image + np.random.default_rng(0).integers(0, 6, image.shape), 0, 255).astype(np.uint8)


def test_torn_is_the_share_that_is_left_out():
    kept = np.zeros((4, 5), dtype=bool)
    kept[:, 0] = True
    crumbs = kept.copy()
    crumbs[0, 3] = True
    assert torn_ratio(kept, kept) == 0.0
    assert torn_ratio(crumbs, kept) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [((1, 4), (1, 4), 0.0), ((0, 3), (1, 4), 3 / 8), ((0, 5), (0, 5), 1.0), ((2, 3), (0, 5), 2 / 5)],
)
def test_cut_is_the_share_of_the_outline_on_the_border(rows, columns, expected):
    mask = np.zeros((5, 5), dtype=bool)
    mask[slice(*rows), slice(*columns)] = True
    assert cut_ratio(mask) == pytest.approx(expected)


def test_edges_in_two_halves_by_hand():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:, 4:, 1] = 90  # widened by one pixel to each side, the edge fills half of the image
    right = np.arange(8)[None].repeat(8, axis=0) >= 4
    assert (edge_ratio(image, right), edge_ratio(image, right.T)) == (2.0, 1.0)
    assert edge_ratio(image, np.ones_like(right)) == 0.0 == edge_ratio(np.zeros_like(image), right)


def test_a_mask_that_follows_the_object_beats_one_that_was_moved():
    image = painted(DISC)
    true, near, far = (edge_ratio(image, np.roll(DISC, shift, axis=1)) for shift in (0, 1, 8))
    assert true > 3 and near > 0.8 * true and far < 0.6 * true
    noise = np.random.default_rng(1).integers(0, 255, image.shape).astype(np.uint8)
    assert edge_ratio(noise, DISC) == pytest.approx(1.0, abs=0.05)
