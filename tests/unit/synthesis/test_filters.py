"""The component filter: its bounds to the pixel, every rule by name, rescue."""

import numpy as np
import pytest
from pydantic import ValidationError

from mflight.functional.layout import MosaicLayout
from mflight.synthesis.filters import RegionFilter

LAYOUT = MosaicLayout(
    canvas_hw=(20, 40), region_boxes=((0, 0, 22, 20), (18, 0, 40, 20)), base_region_hw=(20, 20)
)


def block(height: int, width: int, top: int = 0, left: int = 0) -> np.ndarray:
    mask = np.zeros((20, 22), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def rule_of(mask: np.ndarray, **settings) -> str | None:
    return RegionFilter(**settings).apply([mask, block(5, 5)], LAYOUT).regions[0].rejected


def test_published_bounds_of_the_base_region():
    layout = MosaicLayout((384, 512), ((0, 0, 512, 384),), (384, 512))
    assert RegionFilter().area_range_px(layout) == (9830, 186778)


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (block(0, 0), "no_component"),
        (block(1, 19), "too_small"),
        (block(1, 20), None),
        (block(20, 19), None),
        (block(20, 20), "too_large"),
        (block(5, 5) | block(5, 5, top=10), "too_many_components"),
        (block(5, 5) | block(5, 5, top=5, left=5), "too_many_components"),
        (block(5, 5) | block(2, 2, top=10), None),
        (block(1, 19) | block(1, 19, top=5), "too_small"),
    ],
)
def test_bounds_and_rules(mask, rule):
    assert rule_of(mask) == rule


def test_components_out_of_range_are_left_out_of_the_mask():
    speckled = block(5, 5, top=2, left=3) | block(2, 2, top=15)
    region = RegionFilter().apply([speckled, block(5, 5)], LAYOUT).regions[0]
    assert region.mask.shape == LAYOUT.canvas_hw and region.mask.dtype == bool
    assert region.mask.sum() == 25 and region.mask[2:7, 3:8].all()


def test_masks_are_placed_in_their_region_and_may_intersect():
    masks = [block(10, 6, left=16), block(10, 6)]
    first, second = RegionFilter().apply(masks, LAYOUT).regions
    assert first.mask[:10, 16:22].all() and second.mask[:10, 18:24].all()
    assert (first.mask & second.mask).sum() == 10 * 4


def test_several_components_make_one_mask_by_setting():
    pair = block(5, 5) | block(5, 5, top=10)
    region = RegionFilter(max_components=2).apply([pair, block(5, 5)], LAYOUT).regions[0]
    assert region.rejected is None and region.mask.sum() == 50
    assert rule_of(pair | block(5, 5, left=10), max_components=2) == "too_many_components"


def test_one_rejected_region_drops_the_canvas_unless_it_is_rescued():
    masks = [block(5, 5), block(0, 0)]
    dropped = RegionFilter().apply(masks, LAYOUT)
    rescued = RegionFilter(rescue=True).apply(masks, LAYOUT)
    assert not dropped.is_kept and rescued.is_kept
    assert [region.rejected for region in dropped.regions] == [None, "no_component"]
    assert [region.mask is None for region in rescued.regions] == [False, True]
    assert RegionFilter().apply([block(5, 5)] * 2, LAYOUT).is_kept
    assert not RegionFilter(rescue=True).apply([block(0, 0)] * 2, LAYOUT).is_kept


@pytest.mark.parametrize(
    ("mask", "settings", "rule"),
    [
        (block(6, 6, 3, 3) | block(3, 4, 12, 3), {"max_torn_ratio": 0.25}, None),  # 12 of 48 px are left out
        (block(6, 6, 3, 3) | block(3, 4, 12, 3), {"max_torn_ratio": 0.24}, "torn"),
        (block(6, 6, 0, 3), {"max_cut_ratio": 0.3}, None),  # 6 of 20 px of the outline
        (block(6, 6, 0, 3), {"max_cut_ratio": 0.29}, "cut"),
        (block(6, 6, 3, 0), {"max_cut_ratio": 0.29}, "cut"),
        (block(10, 10, 4, 4), {"min_edge_ratio": 1.5}, None),
        (block(10, 10, 4, 10), {"min_edge_ratio": 1.5}, "off_edges"),
        (block(1, 1), {"max_cut_ratio": 0.0, "max_torn_ratio": 0.0, "min_edge_ratio": 9.0}, "too_small"),
    ],
)
def test_stricter_rules_when_they_are_set(mask, settings, rule):
    image = np.zeros((*LAYOUT.canvas_hw, 3), dtype=np.uint8)
    image[4:14, 4:14] = 200
    settings = {"area_ratio_range": (0.04, 0.95), **settings}
    judged = RegionFilter(**settings).apply([mask, block(10, 10, 4, 4)], LAYOUT, image).regions[0]
    assert judged.rejected == rule and (judged.mask is None) == (rule is not None)
    published = RegionFilter(area_ratio_range=(0.04, 0.95)).apply([mask, mask], LAYOUT, image).regions[0]
    assert published.rejected == (rule if rule == "too_small" else None)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match=r"min_edge_ratio=1\.5 needs the image, got None"):
        RegionFilter(min_edge_ratio=1.5).apply([block(5, 5)] * 2, LAYOUT)
    with pytest.raises(ValidationError, match=r"max_cut_ratio\n.*less than or equal to 1 .*input_value=2"):
        RegionFilter(max_cut_ratio=2)
    with pytest.raises(ValueError, match=r"must be increasing, got \(0\.5, 0\.5\)"):
        RegionFilter(area_ratio_range=(0.5, 0.5))
    with pytest.raises(ValidationError, match=r"less than or equal to 1 .*input_value=1\.5"):
        RegionFilter(area_ratio_range=(0.5, 1.5))
    with pytest.raises(ValidationError, match=r"greater than or equal to 1 .*input_value=0"):
        RegionFilter(max_components=0)
    with pytest.raises(ValueError, match="layout has 2 regions, got 1 masks"):
        RegionFilter().apply([block(5, 5)], LAYOUT)
    with pytest.raises(ValueError, match=r"region 1 is of size \(20, 22\), its mask of \(20, 20\)"):
        RegionFilter().apply([block(5, 5), np.zeros((20, 20), dtype=bool)], LAYOUT)
