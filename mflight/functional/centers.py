"""CenterNet's first stage as pure functions: what each location learns, its losses, and its boxes.

A location is the centre of a cell of a level; ``M`` is the number of those of all levels for one image. What
is "in strides" is divided by the side of the level's cells. ``ltrb`` are the distances from a location to the
left, top, right and bottom side of a box.

Source:
    Zhou et al., "Probabilistic two-stage detection", arXiv:2103.07461, and its program (CenterNet2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DELTA = (1 - 0.8) / (1 + 0.8)  # a centre moved by this share of a side leaves an IoU of 0.8
_MIN_RADIUS_PX = 4.0
_MIN_HEAT = 1e-4
_PROBABILITIES = (1e-4, 1 - 1e-4)  # the bounds of the logarithms
_SURE = 0.85  # a false alarm above it is left out: it may well be an object without a label
_OBJECT_WEIGHT, _BACKGROUND_WEIGHT = 0.5 * 0.25, 0.5 * 0.75
_INSTANCES_AT_ONCE = 64  # M x 64 x 4 float32 are 17 MB for an image of 896 px
_MIN_SIDE_PX = 0.01


@dataclass(frozen=True)
class Locations:
    """The locations of an image, the finest level first, each row by row.

    A level learns the instances with half a diagonal of 4 to 10 of its strides, both ends included; the first
    one all that are smaller, and the last one all that are larger. So neighbours share some.

    Attributes:
        centers: float32[M, 2], x and y in px.
        strides: float32[M], px.
        levels: int64[M].
        sizes_hw: cells of each level.
        level_strides: float32[L], px.
    """

    centers: Tensor
    strides: Tensor
    levels: Tensor
    sizes_hw: tuple[tuple[int, int], ...]
    level_strides: Tensor

    def split(self, rows: Tensor) -> list[Tensor]:
        """Return the rows of each level, of those of all locations along the last but one dimension."""
        return list(rows.split([height * width for height, width in self.sizes_hw], dim=-2))

    def learns(self, half_diagonals: Tensor) -> Tensor:
        """Return bool[L, N]: whether a level learns an instance of float32[N] px."""
        low, high = 4 * self.level_strides, 10 * self.level_strides
        low[0], high[-1] = 0.0, torch.inf
        return (low[:, None] <= half_diagonals) & (half_diagonals <= high[:, None])


def make_locations(sizes_hw: Sequence[tuple[int, int]], strides: Sequence[int], like: Tensor) -> Locations:
    """Lay out the locations of an image.

    Args:
        sizes_hw: cells of each level.
        strides: px of each level.
        like: a tensor on the device that is wanted.

    Returns:
        the locations; cell (i, j) lies at (j s + s // 2, i s + s // 2).
    """
    centers = []
    for (height, width), stride in zip(sizes_hw, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers.append(torch.stack([x, y], dim=-1).reshape(-1, 2) * stride + stride // 2)
    counts = torch.tensor([len(level) for level in centers])
    levels = torch.arange(len(counts)).repeat_interleave(counts).to(like.device)
    level_strides = torch.tensor(strides, dtype=torch.float32, device=like.device)
    return Locations(
        torch.cat(centers).float().to(like.device),
        level_strides[levels],
        levels,
        tuple(tuple(size) for size in sizes_hw),
        level_strides,
    )


@dataclass(frozen=True)
class CenterTargets:
    """What the locations of an image learn.

    Attributes:
        heat: float32[M] in [0, 1], how near the next centre is.
        positives: int64[K], the locations on a centre; one for each instance and level that learns it.
        has_box: bool[M], whether the location learns a box.
        ltrb: float32[M, 4] in strides, the box; of no meaning where there is none.
    """

    heat: Tensor
    positives: Tensor
    has_box: Tensor
    ltrb: Tensor


def center_targets(boxes: Tensor, locations: Locations) -> CenterTargets:
    """Work out what the locations of an image learn.

    With c the centre of an instance and A its area, and ^c the location of the cell that c lies in::

        D(x) = 0 at ^c, else |x - c|^2 / max(2 delta^2 A, 4^2)
        heat = exp(-min D) of all instances, on all levels; 0 below 1e-4

    A location learns the box of least D among those that it lies in strictly, that its level learns, and
    whose ^c is its own cell or one of the eight around.

    Args:
        boxes: float32[N, 4], xyxy px.
        locations: of the image.

    Returns:
        the targets.
    """
    num = len(locations.centers)
    nearest = boxes.new_full((num,), torch.inf)  # D of all instances
    learnt = boxes.new_full((num,), torch.inf)  # D of those that may be learnt
    ltrb = boxes.new_zeros(num, 4)
    for some in boxes.split(_INSTANCES_AT_ONCE) if len(boxes) else ():
        distances, sides, may_learn = _relations(some, locations)
        nearest = torch.minimum(nearest, distances.amin(dim=1))
        best, index = distances.masked_fill(~may_learn, torch.inf).min(dim=1)
        own = sides.gather(1, index[:, None, None].expand(-1, 1, 4))[:, 0]
        ltrb = torch.where((best < learnt)[:, None], own / locations.strides[:, None], ltrb)
        learnt = torch.minimum(learnt, best)
    heat = torch.exp(-nearest)
    heat = heat.masked_fill(heat < _MIN_HEAT, 0.0)
    return CenterTargets(heat, _cells_of_centers(boxes, locations), learnt.isfinite(), ltrb)


def _relations(boxes: Tensor, locations: Locations) -> tuple[Tensor, Tensor, Tensor]:
    """Return D float32[M, N], the distances to the sides [M, N, 4] px, and whether a box may be learnt."""
    points, strides = locations.centers[:, None], locations.strides[:, None]
    low, high = boxes[:, :2], boxes[:, 2:]
    centers, areas = (low + high) / 2, (high - low).prod(dim=1)
    cells = torch.trunc(centers / strides[..., None]) * strides[..., None] + strides[..., None] / 2
    distances = ((points - centers) ** 2).sum(dim=2) / (2 * _DELTA**2 * areas).clamp(min=_MIN_RADIUS_PX**2)
    distances = distances.masked_fill((points == cells).all(dim=2), 0.0)
    sides = torch.cat([points - low, high - points], dim=2)
    is_near = ((points - cells).abs() <= strides[..., None]).all(dim=2)
    fits = locations.learns(_half_diagonals(boxes))[locations.levels]
    return distances, sides, is_near & fits & (sides.amin(dim=2) > 0)


def _half_diagonals(boxes: Tensor) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) ** 2).sum(dim=1).sqrt() / 2


def _cells_of_centers(boxes: Tensor, locations: Locations) -> Tensor:
    """Return int64[K], the locations on the centres of the instances, on each level that learns them."""
    sizes_hw = torch.tensor(locations.sizes_hw, device=boxes.device)
    firsts = sizes_hw.prod(dim=1).cumsum(0) - sizes_hw.prod(dim=1)
    level, instance = torch.where(locations.learns(_half_diagonals(boxes)))
    centers = (boxes[:, :2] + boxes[:, 2:])[instance] / 2
    x, y = torch.trunc(centers / locations.level_strides[level, None]).long().unbind(dim=1)
    height, width = sizes_hw[level].unbind(dim=1)
    x, y = torch.minimum(x, width - 1), torch.minimum(y, height - 1)  # a centre on the far border
    return firsts[level] + y * width + x


def heat_losses(
    logits: Tensor, heat: Tensor, positives: Tensor, left_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the focal loss of the centres and that of all locations, both summed up.

    Args:
        logits: float32[M] of one image or of several.
        heat: float32[M] in [0, 1].
        positives: int64[K], the locations on a centre.
        left_out: bool[M], those that are no background either; ``None`` for none.

    Returns:
        two scalars.

    Example:
        >>> logits, heat = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> [round(loss.item(), 4) for loss in heat_losses(logits, heat, torch.tensor([0]))]
        [0.0217, 0.065]
    """
    p = logits.sigmoid().clamp(*_PROBABILITIES)
    at_centers = p[positives]
    objects = -(at_centers.log() * (1 - at_centers) ** 2).sum()
    background = -((1 - p).log() * p**2 * (1 - heat) ** 4)
    counts = p < _SURE if left_out is None else (p < _SURE) & ~left_out
    return _OBJECT_WEIGHT * objects, _BACKGROUND_WEIGHT * torch.where(counts, background, 0.0).sum()


def ltrb_giou_losses(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return ``1 - GIoU`` of two boxes around the same location; its IoU has one added above and below.

    Args:
        predicted: float32[R, 4], ltrb >= 0 in strides.
        wanted: the same.

    Returns:
        float32[R].

    Example:
        >>> one, two = torch.ones(1, 4), 2 * torch.ones(1, 4)
        >>> ltrb_giou_losses(one, two)  # 1 - (4 + 1) / (16 + 1)
        tensor([0.7059])
    """

    def area(ltrb: Tensor) -> Tensor:
        return (ltrb[:, 0] + ltrb[:, 2]) * (ltrb[:, 1] + ltrb[:, 3])

    shared = area(torch.minimum(predicted, wanted))
    union = area(predicted) + area(wanted) - shared
    around = area(torch.maximum(predicted, wanted))
    return 1 - ((shared + 1) / (union + 1) - (around - union) / around)


def decode_ltrb(centers: Tensor, strides: Tensor, ltrb: Tensor) -> Tensor:
    """Turn distances into boxes, at least 0.01 px wide and high, and not clipped to the image.

    Args:
        centers: float32[R, 2], px.
        strides: float32[R], px.
        ltrb: float32[R, 4] >= 0, in strides.

    Returns:
        float32[R, 4], xyxy px.
    """
    distances = ltrb * strides[:, None]
    low = centers - distances[:, :2]
    return torch.cat([low, torch.maximum(centers + distances[:, 2:], low + _MIN_SIDE_PX)], dim=1)
