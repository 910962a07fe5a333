import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from mflight.evaluation.overlap import outline_to_rle
from mflight.functional.polygons import mask_to_polygons


def random_masks(count):
    draws = np.random.default_rng(0)
    for index in range(count):
        noise = draws.random(draws.integers(1, 24, 2))
        yield noise < draws.random() if index % 2 else ndimage.gaussian_filter(noise, 1.2) > 0.5


def inside_by_even_odd(polygons, size_hw):
    """Count, for the centre of each pixel, the edges to its right."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    inside = np.zeros(size_hw, bool)
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
            assert (x1 == x2) != (y1 == y2)  # along the edges of pixels
            if x1 == x2:
                inside ^= (rows > min(y1, y2)) & (rows < max(y1, y2)) & (columns < x1)
    return inside


def test_polygons_are_the_mask_with_its_holes_filled():
    for mask in random_masks(60):
        drawn = coco_mask.decode(outline_to_rle(mask_to_polygons(mask), *mask.shape))
        assert np.array_equal(drawn, ndimage.binary_fill_holes(mask))


def test_polygons_with_holes_are_the_mask():
    for mask in random_masks(60):
        polygons = mask_to_polygons(mask, with_holes=True)
        assert np.array_equal(inside_by_even_odd(polygons, mask.shape), mask)


def test_the_outlines_are_those_of_opencv():
    cv2 = pytest.importorskip("cv2")
    for mask in random_masks(60):
        for with_holes, mode in ((False, cv2.RETR_EXTERNAL), (True, cv2.RETR_CCOMP)):
            doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
            found, _ = cv2.findContours(doubled, mode, cv2.CHAIN_APPROX_NONE)
            theirs = [turning_points((outline[:, 0] + 1) // 2) for outline in found]
            ours = [np.reshape(polygon, (-1, 2)) for polygon in mask_to_polygons(mask, with_holes=with_holes)]
            assert sorted(map(from_the_first, ours)) == sorted(map(from_the_first, theirs))


def turning_points(points):
    moved = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    into, out_of = moved - np.roll(moved, 1, axis=0), np.roll(moved, -1, axis=0) - moved
    return moved[into[:, 0] * out_of[:, 1] != into[:, 1] * out_of[:, 0]]


def from_the_first(points):
    """The same walk from its lowest point on; of two visits to it the one that comes from the lower point."""
    walk = [tuple(point) for point in points.tolist()]
    first = min(range(len(walk)), key=lambda index: (walk[index], walk[index - 1]))
    return walk[first:] + walk[:first]


def test_small_cases():
    assert mask_to_polygons(np.zeros((3, 4), bool)) == []
    assert mask_to_polygons(np.ones((1, 1), np.uint8)) == [[0, 0, 0, 1, 1, 1, 1, 0]]
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert len(mask_to_polygons(ring)) == 1 and len(mask_to_polygons(ring, with_holes=True)) == 2
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        mask_to_polygons(np.zeros((2, 3, 4)))
