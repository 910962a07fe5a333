"""Where the regions of a mosaic lie on its canvas. Plain integers: no tensor, no model, no I/O."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Box = tuple[int, int, int, int]
SplitAxis = Literal["columns", "rows"]


@dataclass(frozen=True)
class MosaicLayout:
    """A canvas and the regions that cover it, all in pixels.

    Attributes:
        canvas_hw: ``(H, W)`` of the whole canvas.
        region_boxes: one xyxy box a region, in reading order; neighbours overlap.
        base_region_hw: ``(H, W)`` of a region before the mosaic centre is jittered; the unit in which
            the filters measure areas.

    Raises:
        ValueError: if a box is empty or leaves the canvas.
    """

    canvas_hw: tuple[int, int]
    region_boxes: tuple[Box, ...]
    base_region_hw: tuple[int, int]

    def __post_init__(self):
        height, width = self.canvas_hw
        for index, (x1, y1, x2, y2) in enumerate(self.region_boxes):
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError(
                    f"region_boxes[{index}] must satisfy 0 <= x1 < x2 <= {width} and "
                    f"0 <= y1 < y2 <= {height}, got {(x1, y1, x2, y2)}"
                )

    @property
    def base_area_px(self) -> int:
        """Area of a region before jitter, in square pixels."""
        return self.base_region_hw[0] * self.base_region_hw[1]

    def latent_boxes(self, stride_px: int) -> tuple[Box, ...]:
        """The region boxes in latent cells, xyxy; every edge must be a multiple of ``stride_px``."""
        check_stride(self, stride_px)
        return tuple(tuple(edge // stride_px for edge in box) for box in self.region_boxes)  # type: ignore[misc]


def draw_layout(
    *,
    num_regions: int,
    region_hw: tuple[int, int],
    overlap_hw: tuple[int, int],
    center_ratio_range: tuple[float, float],
    stride_px: int,
    draws: random.Random,
    split: SplitAxis | None = None,
    center_grid_px: int | None = None,
) -> MosaicLayout:
    """Draw the published layout of one, two or four regions around a jittered mosaic centre.

    Draws, in this order: the axis (two regions without ``split``), the centre's x, the centre's y. One
    region draws nothing; two regions draw only the coordinate across which the canvas is split.

    Args:
        num_regions: 1, 2 or 4; ``draw_grid_layout`` takes any grid.
        region_hw: ``(H, W)`` of the base region, in pixels.
        overlap_hw: ``(height, width)`` shared by neighbouring regions, in pixels: each reaches half of it
            past the line between them.
        center_ratio_range: the centre lies at ``U(low, high)`` times the base region's size.
        stride_px: pixels per latent cell; every region edge must be a multiple of it.
        draws: source of the jitter.
        split: ``"columns"`` or ``"rows"`` of two regions; ``None`` draws one of them.
        center_grid_px: the centre lies on multiples of this, so that a coarse grid keeps the number of
            distinct region shapes small; ``None`` means ``stride_px``. See ``draw_grid_layout``.

    Returns:
        The layout, its regions in reading order.

    Raises:
        ValueError: if ``num_regions`` is not 1, 2 or 4, or if ``draw_grid_layout`` refuses the sizes.

    Source:
        Xie et al., "MosaicFusion", arXiv:2309.13042, and its published program (order of the draws).

    Example:
        >>> layout = draw_layout(num_regions=2, region_hw=(64, 64), overlap_hw=(8, 8), split="columns",
        ...     center_ratio_range=(1.0, 1.0), stride_px=4, draws=random.Random(0))
        >>> layout.canvas_hw, layout.region_boxes
        ((64, 128), ((0, 0, 68, 64), (60, 0, 128, 64)))
    """
    if num_regions == 2 and split is None:
        split = ("columns", "rows")[draws.randrange(2)]
    grids = {1: (1, 1), 2: (1, 2) if split == "columns" else (2, 1), 4: (2, 2)}
    if num_regions not in grids:
        raise ValueError(f"num_regions must be 1, 2 or 4, got {num_regions}; draw_grid_layout takes any grid")
    return draw_grid_layout(
        grid=grids[num_regions],
        region_hw=region_hw,
        overlap_hw=overlap_hw,
        center_ratio_range=center_ratio_range,
        stride_px=stride_px,
        draws=draws,
        center_grid_px=center_grid_px,
    )


def draw_grid_layout(
    *,
    grid: tuple[int, int],
    region_hw: tuple[int, int],
    overlap_hw: tuple[int, int],
    center_ratio_range: tuple[float, float],
    stride_px: int,
    draws: random.Random,
    center_grid_px: int | None = None,
) -> MosaicLayout:
    """Draw a layout of rows x columns regions; 1 x 1, 1 x 2, 2 x 1 and 2 x 2 are the published ones.

    The line between columns k and k + 1 lies at ``(k - 1 + U(low, high)) W``, and likewise for rows. The
    lines between columns are drawn first, from left to right, then those between rows.

    Args:
        grid: ``(rows, columns)``, each at least 1.
        region_hw: ``(H, W)`` of the base region, in pixels.
        overlap_hw: ``(height, width)`` shared by neighbouring regions, in pixels.
        center_ratio_range: jitter of a line, in base region sizes; ``(1, 1)`` keeps the lines in place.
        stride_px: pixels per latent cell; every region edge must be a multiple of it.
        draws: source of the jitter.
        center_grid_px: lines are rounded down to a multiple of the stride, as published, where this is
            ``None`` or ``stride_px``; else to the nearest multiple of this inside of the jitter's range,
            since rounding down to a coarse grid would move the mean of the lines.

    Returns:
        The layout, its regions in reading order.

    Raises:
        ValueError: if ``grid`` holds a number below 1, if a region edge is not a multiple of
            ``stride_px``, if no multiple of ``center_grid_px`` lies in the jitter's range, or if the jitter
            leaves a region empty or outside of the canvas.
    """
    if min(grid) < 1:
        raise ValueError(f"grid must hold at least one row and one column, got {grid}")
    rows, columns = grid
    (height, width), (overlap_h, overlap_w) = region_hw, overlap_hw

    def draw_lines(count: int, size: int) -> list[int]:
        ratios = [k + draws.uniform(*center_ratio_range) for k in range(count - 1)]
        if center_grid_px in (None, stride_px):
            return [int(ratio * size) // stride_px * stride_px for ratio in ratios]
        low, high = (round(ratio * size) for ratio in center_ratio_range)
        return [
            _nearest_multiple(ratio * size, center_grid_px, k * size + low, k * size + high)
            for k, ratio in enumerate(ratios)
        ]

    column_lines = draw_lines(columns, width)
    row_lines = draw_lines(rows, height)
    layout = MosaicLayout(
        canvas_hw=(rows * height, columns * width),
        region_boxes=tuple(
            (x1, y1, x2, y2)
            for y1, y2 in _spans(row_lines, rows * height, overlap_h)
            for x1, x2 in _spans(column_lines, columns * width, overlap_w)
        ),
        base_region_hw=region_hw,
    )
    check_stride(layout, stride_px)
    return layout


def check_stride(layout: MosaicLayout, stride_px: int) -> None:
    """Raise ValueError unless every edge of ``layout`` is a multiple of ``stride_px``."""
    if any(edge % stride_px for edge in layout.canvas_hw):
        raise ValueError(
            f"canvas_hw must be a multiple of the latent stride {stride_px} px, got {layout.canvas_hw}"
        )
    for index, box in enumerate(layout.region_boxes):
        if any(edge % stride_px for edge in box):
            raise ValueError(
                f"every region edge must be a multiple of the latent stride {stride_px} px, "
                f"got region_boxes[{index}] = {box}"
            )


def _nearest_multiple(position: float, grid_px: int, low: int, high: int) -> int:
    """The multiple of ``grid_px`` in ``low..high`` that is nearest to ``position``."""
    first, last = -(-low // grid_px), high // grid_px
    if first > last:
        raise ValueError(
            f"center_ratio_range must hold a multiple of center_grid_px {grid_px} px, got {low}..{high} px"
        )
    return min(max(round(position / grid_px), first), last) * grid_px


def _spans(lines: Sequence[int], size: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of each row or column, reaching half of ``overlap`` past the lines between them."""
    edges = [(0, 0), *((line - overlap // 2, line + overlap // 2) for line in lines), (size, size)]
    return [(start, end) for (start, _), (_, end) in pairwise(edges)]
