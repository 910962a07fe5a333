import random

import pytest

from mflight.functional.layout import MosaicLayout, draw_grid_layout, draw_layout

PUBLISHED = {
    "region_hw": (384, 512),
    "overlap_hw": (48, 64),
    "center_ratio_range": (0.75, 1.25),
    "stride_px": 8,
}


def draw(num_regions, seed=0, **settings):
    return draw_layout(num_regions=num_regions, draws=random.Random(seed), **(PUBLISHED | settings))


def test_four_regions_meet_at_a_centre_whose_x_is_drawn_first():
    draws = random.Random(0)
    cx = int(draws.uniform(0.75, 1.25) * 512) // 8 * 8
    cy = int(draws.uniform(0.75, 1.25) * 384) // 8 * 8
    layout = draw(4)
    assert layout.canvas_hw == (768, 1024)
    assert layout.region_boxes == (
        (0, 0, cx + 32, cy + 24),
        (cx - 32, 0, 1024, cy + 24),
        (0, cy - 24, cx + 32, 768),
        (cx - 32, cy - 24, 1024, 768),
    )
    assert layout.base_area_px == 384 * 512


def test_two_regions_draw_only_the_coordinate_across():
    center = int(random.Random(5).uniform(0.75, 1.25) * 512) // 8 * 8
    columns = draw(2, seed=5, split="columns")
    assert columns.canvas_hw == (384, 1024)
    assert columns.region_boxes == ((0, 0, center + 32, 384), (center - 32, 0, 1024, 384))
    center = int(random.Random(5).uniform(0.75, 1.25) * 384) // 8 * 8
    rows = draw(2, seed=5, split="rows")
    assert rows.region_boxes == ((0, 0, 512, center + 24), (0, center - 24, 512, 768))


def test_two_regions_without_split_draw_the_axis_first():
    canvases = set()
    for seed in range(20):
        axis = random.Random(seed).randrange(2)
        layout = draw(2, seed=seed)
        assert layout.canvas_hw == ((384, 1024), (768, 512))[axis]
        canvases.add(layout.canvas_hw)
    assert len(canvases) == 2


def test_one_region_is_the_canvas_and_draws_nothing():
    draws = random.Random(1)
    state = draws.getstate()
    layout = draw_layout(num_regions=1, draws=draws, **PUBLISHED)
    assert layout.region_boxes == ((0, 0, 512, 384),)
    assert draws.getstate() == state


def test_coarse_centre_grid_bounds_the_number_of_shapes():
    shapes = {
        (x2 - x1, y2 - y1)
        for seed in range(300)
        for x1, y1, x2, y2 in draw(4, seed=seed, center_grid_px=64).region_boxes
    }
    widths, heights = ({shape[axis] for shape in shapes} for axis in (0, 1))
    assert len(widths) <= 9 and len(heights) <= 7
    assert len(widths) > 2


@pytest.mark.parametrize(
    "settings",
    [
        {"center_grid_px": 64},
        {"region_hw": (768, 1024), "overlap_hw": (96, 128), "center_grid_px": 128},
        {"region_hw": (64, 64), "overlap_hw": (16, 16), "stride_px": 4, "center_grid_px": 8},
    ],
)
def test_coarse_centre_grid_keeps_the_jitter_centred_and_within_its_range(settings):
    height, width = (PUBLISHED | settings)["region_hw"]
    draws, lines = random.Random(0), []
    for _ in range(4000):
        boxes = draw_grid_layout(grid=(2, 3), draws=draws, **(PUBLISHED | settings)).region_boxes
        column_lines = [(boxes[k][2] + boxes[k + 1][0]) / 2 / width - k for k in range(2)]
        lines.append([*column_lines, (boxes[0][3] + boxes[3][1]) / 2 / height])
        assert all(line * width % settings["center_grid_px"] == 0 for line in column_lines)
    for axis in zip(*lines, strict=True):
        assert abs(sum(axis) / len(axis) - 1) < 0.01
        assert min(axis) >= 0.75 and max(axis) <= 1.25 and len(set(axis)) > 2


def test_centre_grid_that_misses_the_range_is_refused():
    with pytest.raises(ValueError, match=r"multiple of center_grid_px 96 px, got 512\.\.512 px"):
        draw(4, center_grid_px=96, center_ratio_range=(1.0, 1.0))


@pytest.mark.parametrize("grid", [(1, 3), (3, 2), (4, 4)])
def test_any_grid_covers_its_canvas_with_overlapping_neighbours(grid):
    layout = draw_grid_layout(grid=grid, draws=random.Random(3), **PUBLISHED)
    rows, columns = grid
    height, width = layout.canvas_hw
    assert (height, width) == (rows * 384, columns * 512)
    boxes = layout.region_boxes
    assert len(boxes) == rows * columns
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        row, column = divmod(index, columns)
        assert (x1 == 0) == (column == 0) and (x2 == width) == (column == columns - 1)
        assert (y1 == 0) == (row == 0) and (y2 == height) == (row == rows - 1)
        if column:
            assert boxes[index - 1][2] - x1 == 64
        if row:
            assert boxes[index - columns][3] - y1 == 48


def test_latent_boxes_are_in_cells():
    layout = MosaicLayout((64, 64), ((0, 0, 36, 64), (28, 0, 64, 64)), (64, 32))
    assert layout.latent_boxes(4) == ((0, 0, 9, 16), (7, 0, 16, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_regions": 3}, "must be 1, 2 or 4, got 3"),
        ({"overlap_hw": (48, 40)}, r"stride 8 px, got region_boxes\[0\] = \(0, 0, "),
        ({"region_hw": (386, 512)}, r"stride 8 px, got \(772, 1024\)"),
        ({"center_ratio_range": (1.99, 1.99)}, r"x2 <= 1024 .* got \(0, 0, 1048,"),
    ],
)
def test_impossible_layouts_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(**({"num_regions": 4} | settings))


def test_empty_grid_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        draw_grid_layout(grid=(0, 2), draws=random.Random(0), **PUBLISHED)
