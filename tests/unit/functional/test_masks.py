"""Masks: round trips through run-length codes, hand-made components, polygons, boxes."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mflight.functional.masks import (
    label_components,
    mask_areas,
    mask_to_box,
    resize_mask,
    rle_decode,
    rle_decode_box,
    rle_encode,
    rle_to_box,
)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_run_length_codes_return_the_same_mask(share):
    mask = np.random.default_rng(0).random((37, 23)) < share
    rle = json.loads(json.dumps(rle_encode(mask)))
    np.testing.assert_array_equal(rle_decode(rle), mask)
    assert coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode()}) == mask.sum()


def test_every_value_but_zero_is_object():
    mask = np.array([[0, 1, 255]], dtype=np.uint8)
    assert rle_encode(mask) == rle_encode(mask > 0)


def test_plain_runs_are_read_in_column_order():
    mask = rle_decode({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.tolist() == [[False, True, False], [True, False, False]]


def test_the_box_holds_the_mask_and_nothing_more():
    for seed in range(20):
        mask = np.random.default_rng(seed).random((12, 15)) < 0.02
        mask[seed % 12, seed % 15] = True
        x1, y1, x2, y2 = mask_to_box(mask)
        assert mask[y1:y2, x1:x2].sum() == mask.sum()
        assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()


def test_pixels_that_touch_at_a_corner_are_apart():
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 1, 0]], dtype=bool)
    components, areas_px = label_components(mask)
    assert areas_px.tolist() == [3, 3]
    assert components.tolist() == [[1, 1, 0, 0], [1, 0, 2, 2], [0, 0, 2, 0]]
    assert label_components(np.zeros((3, 3), dtype=bool))[1].tolist() == []


def test_resizing_keeps_the_share_of_the_object():
    rows, columns = np.mgrid[:96, :128]
    disc = (rows - 40) ** 2 + (columns - 70) ** 2 < 30**2
    assert resize_mask(disc, (48, 64)).mean() == pytest.approx(disc.mean(), rel=0.02)
    np.testing.assert_array_equal(resize_mask(disc, (96, 128)), disc)
    np.testing.assert_array_equal(resize_mask(disc, (192, 384)), disc.repeat(2, axis=0).repeat(3, axis=1))


def test_errors_name_the_value():
    with pytest.raises(ValueError, match=r"\[H, W\], got shape \(1, 2, 3\)"):
        rle_encode(np.zeros((1, 2, 3), dtype=bool))
    with pytest.raises(ValueError, match=r"empty mask of shape \(4, 5\) has no box"):
        mask_to_box(np.zeros((4, 5), dtype=bool))


def test_areas_of_masks_by_hand():
    masks = np.zeros((3, 5, 6), dtype=np.uint8)
    masks[0, 1:3, 2:5], masks[2] = 1, 1
    assert mask_areas(masks).tolist() == [6, 0, 30]
    assert mask_areas(masks[:, :2, ::2]).tolist() == [2, 0, 6]  # row 1, columns 2 and 4
    assert mask_areas(masks[:0]).tolist() == []


def test_a_mask_drawn_within_its_box_is_the_mask():
    draws = np.random.default_rng(5)
    for number in range(300):
        mask = draws.random(draws.integers(1, 40, 2)) < draws.choice([0.03, 0.4, 0.95, 1.0])
        if number % 3 == 0:  # runs that go on over whole columns
            first, last = np.sort(draws.integers(0, mask.size + 1, 2))
            mask.T.flat[:], mask.T.flat[first:last] = False, True
        rle = rle_encode(mask)
        part, box = rle_decode_box(rle)
        assert box == rle_to_box(rle) and part.dtype == np.uint8
        x1, y1, x2, y2 = box
        whole = np.zeros(mask.shape, dtype=np.uint8)
        whole[y1:y2, x1:x2] = part
        np.testing.assert_array_equal(whole, mask)


def test_runs_of_no_length_and_plain_lists_are_drawn():
    part, box = rle_decode_box({"size": [3, 4], "counts": [2, 0, 2, 1, 0, 2, 5]})
    whole = np.zeros((3, 4), dtype=np.uint8)
    whole[box[1] : box[3], box[0] : box[2]] = part
    np.testing.assert_array_equal(whole, rle_decode({"size": [3, 4], "counts": [2, 0, 2, 1, 0, 2, 5]}))
    part, box = rle_decode_box(rle_encode(np.zeros((3, 4), dtype=bool)))
    assert part.shape == (0, 0) and box == (0, 0, 0, 0)


def test_the_box_of_a_code_is_that_of_its_mask():
    rng = np.random.default_rng(3)
    for density in (0.001, 0.01, 0.2, 0.9):
        for _ in range(20):
            mask = rng.random((rng.integers(1, 30), rng.integers(1, 30))) < density
            expected = mask_to_box(mask) if mask.any() else (0, 0, 0, 0)
            assert rle_to_box(rle_encode(mask)) == expected
    assert rle_to_box({"size": [2, 3], "counts": [2, 3, 1]}) == (1, 0, 3, 2)
