"""The fast bilateral solver for many regions together, on any device. See `mflight.functional.bilateral`.

The grids of all regions are one: the region's number is the first part of a vertex's key, and no vertex has a
neighbour in another region. Values at vertices are ``float64[R, V]``, V the most vertices of a region; the
slots that a smaller region leaves free hold zeros. Every iteration runs for all regions, and those that have
converged stand still, so that the device is never asked whether it is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mflight.functional.bilateral import (
    LEAST_DIAGONAL,
    YUV_FROM_RGB,
    YUV_OFFSET,
    BilateralSettings,
)


def refine_masks(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    num_passes: int = 2,
    settings: BilateralSettings | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Move the outlines of masks to the edges of their images; regions may differ in size.

    The results are those of `mflight.functional.bilateral.refine_mask` region by region, up to the order of
    sums. The host waits for the device only to learn how many vertices the grid has.

    Args:
        images: ``R`` tensors ``uint8[H, W, 3]``, RGB, all on one device.
        masks: ``R`` tensors ``bool`` or ``uint8[H, W]`` of the images' sizes, on the same device.
        num_passes: how often the solver is applied; 0 gives the masks back.
        settings: the numbers of the solver; the published ones if none are given.

    Returns:
        ``R`` refined masks ``bool[H, W]``, and ``R`` tensors ``float64[num_passes, H, W]``: the solver's
        output of each pass before its cut, with the target scaled to 0..255.

    Raises:
        ValueError: if images and masks are not equally many, if an image is not ``uint8[H, W, 3]``, or if a
            mask is not of its image's size.

    Example:
        >>> image = torch.zeros(32, 32, 3, dtype=torch.uint8)
        >>> image[:, 12:] = 255  # a white wall from column 12 on
        >>> mask = torch.arange(32).expand(32, 32) >= 14
        >>> refined, _ = refine_masks([image], [mask])
        >>> int(refined[0].int().argmax(dim=1).max())
        12
    """
    if len(images) != len(masks):
        raise ValueError(f"every image needs one mask, got {len(images)} images and {len(masks)} masks")
    _check_regions(images, masks)
    settings = settings or BilateralSettings()
    masks = [mask != 0 for mask in masks]
    if num_passes == 0 or not masks:
        return masks, [mask.new_zeros((0, *mask.shape), dtype=torch.float64) for mask in masks]
    grid = _build_grid(images, settings)
    object_pixels = grid.splat(torch.cat([mask.flatten() for mask in masks]).double())
    softs = []
    for _ in range(num_passes):
        softs.append(_smooth(grid, object_pixels, settings))
        level = settings.cut * softs[-1].amax(dim=1, keepdim=True).clamp_min(0.0)
        is_object = softs[-1] > level  # [R, V]
        object_pixels = is_object * grid.num_pixels
    sizes_hw = [tuple(mask.shape) for mask in masks]
    refined = grid.slice(is_object, sizes_hw)
    per_pass = [grid.slice(soft, sizes_hw) for soft in softs]
    return refined, [torch.stack(softs_of_region) for softs_of_region in zip(*per_pass, strict=True)]


@dataclass(frozen=True)
class _Grid:
    """Occupied vertices of all regions, each in a slot of ``[R, V]``, with the linear system between them."""

    slot_of_pixel: Tensor  # int64[P], the pixels of all regions one after the other
    num_pixels: Tensor  # float64[R, V], 0 in free slots
    weight: Tensor  # float64[R, V], splat(c); that of one pixel in free slots
    neighbours: Tensor  # int64[10, R * V], slots
    off_diagonal: Tensor  # float64[10, R, V] of A, 0 where there is no neighbour
    diagonal: Tensor  # float64[R, V] of A

    def splat(self, values: Tensor) -> Tensor:
        """Return ``float64[R, V]``: the sums of ``float64[P]`` over the pixels of each vertex."""
        sums = torch.zeros_like(self.num_pixels)
        sums.view(-1).index_add_(0, self.slot_of_pixel, values)
        return sums

    def slice(self, vertex_values: Tensor, sizes_hw: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return ``[H, W]`` for each region: at each pixel, the value of its vertex."""
        pixels = vertex_values.reshape(-1)[self.slot_of_pixel]
        parts = pixels.split([height * width for height, width in sizes_hw])
        return [part.view(size_hw) for part, size_hw in zip(parts, sizes_hw, strict=True)]

    def multiply(self, values: Tensor) -> Tensor:
        """Return ``A values``, ``float64[R, V]``."""
        gathered = values.view(-1)[self.neighbours].view_as(self.off_diagonal)
        return self.diagonal * values + (self.off_diagonal * gathered).sum(dim=0)


def _smooth(grid: _Grid, object_pixels: Tensor, settings: BilateralSettings) -> Tensor:
    """Solve for masks given as ``float64[R, V]`` pixels of object at each vertex; scaled to 0..255."""
    right_side = 255 * settings.confidence * object_pixels
    inverse_diagonal = 1.0 / grid.diagonal.clamp_min(LEAST_DIAGONAL)
    stop_at = settings.tolerance * right_side.norm(dim=1, keepdim=True)  # [R, 1]
    solution = right_side / grid.weight
    residual = right_side - grid.multiply(solution)
    direction = torch.zeros_like(solution)
    last_product = torch.ones_like(stop_at)
    for _ in range(settings.max_iterations):
        is_active = residual.norm(dim=1, keepdim=True) > stop_at
        preconditioned = inverse_diagonal * residual
        product = (residual * preconditioned).sum(dim=1, keepdim=True)
        direction = preconditioned + torch.where(is_active, product / last_product, 0.0) * direction
        response = grid.multiply(direction)
        step = torch.where(is_active, product / (direction * response).sum(dim=1, keepdim=True), 0.0)
        solution = solution + step * direction
        residual = residual - step * response
        last_product = torch.where(is_active, product, 1.0)
    return solution


def _build_grid(images: Sequence[Tensor], settings: BilateralSettings) -> _Grid:
    keys, strides = _pixel_keys(images, settings)
    vertices, vertex_of_pixel = torch.unique(keys, return_inverse=True)  # sorted, so by region
    region_of_vertex = torch.div(vertices, strides[0], rounding_mode="floor")
    regions = torch.arange(len(images) + 1, device=keys.device)
    first_vertex = torch.searchsorted(region_of_vertex, regions)  # [R + 1]
    most_vertices = int(first_vertex.diff().amax())
    slot = torch.arange(len(vertices), device=keys.device) - first_vertex[region_of_vertex]
    slot = slot + region_of_vertex * most_vertices
    shape = (len(images), most_vertices)
    neighbours, is_neighbour = _find_neighbours(vertices, strides[1:], slot, shape)

    slot_of_pixel = slot[vertex_of_pixel]
    num_pixels = torch.zeros(shape, dtype=torch.float64, device=keys.device)
    num_pixels.view(-1).index_add_(0, slot_of_pixel, num_pixels.new_ones(len(slot_of_pixel)))
    scale = torch.ones_like(num_pixels)

    def blur(values: Tensor) -> Tensor:
        around = (is_neighbour * values.view(-1)[neighbours].view_as(is_neighbour)).sum(dim=0)
        return settings.blur_self_weight * values + around

    for _ in range(settings.num_bistochastize_steps):
        scale = (scale * num_pixels / blur(scale).clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    mass = scale * blur(scale)
    scale_of_neighbour = scale.view(-1)[neighbours].view_as(is_neighbour)
    return _Grid(
        slot_of_pixel=slot_of_pixel,
        num_pixels=num_pixels,
        weight=settings.confidence * num_pixels.clamp_min(1.0),
        neighbours=neighbours,
        off_diagonal=-settings.smoothness * is_neighbour * scale * scale_of_neighbour,
        diagonal=settings.smoothness * (mass - settings.blur_self_weight * scale**2)
        + settings.confidence * num_pixels,
    )


def _find_neighbours(
    vertices: Tensor, strides: Sequence[int], slot: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the slots at +-1 along 5 axes, ``int64[10, R * V]``, and 1.0 where one is, ``[10, R, V]``."""
    neighbours = torch.zeros(10, shape[0] * shape[1], dtype=torch.int64, device=vertices.device)
    is_neighbour = torch.zeros(10, shape[0] * shape[1], dtype=torch.float64, device=vertices.device)
    for index, offset in enumerate([*strides, *(-stride for stride in strides)]):
        wanted = vertices + offset
        place = torch.searchsorted(vertices, wanted).clamp_max(len(vertices) - 1)
        neighbours[index, slot] = slot[place]
        is_neighbour[index, slot] = (vertices[place] == wanted).double()
    return neighbours, is_neighbour.view(10, *shape)


def _pixel_keys(images: Sequence[Tensor], settings: BilateralSettings) -> tuple[Tensor, tuple[int, ...]]:
    """Return ``int64[P]``, region and grid cell of each pixel in one number, and the steps of its 6 parts.

    Each axis of the grid has one cell too many, which stays empty: a step of +-1 past the last cell of an
    axis meets no pixel.
    """
    device = images[0].device

    def to_cells(values: Tensor, sigma: float) -> Tensor:
        # A tensor as divisor: by a plain number, CUDA multiplies with the rounded reciprocal instead.
        return torch.floor(values / torch.full((), sigma, dtype=torch.float64, device=device)).long()

    sigmas = (settings.sigma_spatial_px,) * 2 + (settings.sigma_luma,) + (settings.sigma_chroma,) * 2
    most = [max(image.shape[0] for image in images), max(image.shape[1] for image in images), 256, 256, 256]
    sizes = [int(count / sigma) + 2 for count, sigma in zip(most, sigmas, strict=True)]
    strides = [1]
    for size in reversed(sizes):
        strides.insert(0, strides[0] * size)
    keys = []
    for region, image in enumerate(images):
        red, green, blue = (image[..., channel].double() for channel in range(3))
        rows, columns = (
            to_cells(torch.arange(count, dtype=torch.float64, device=device), settings.sigma_spatial_px)
            for count in image.shape[:2]
        )
        key = region * strides[0] + rows[:, None] * strides[1] + columns * strides[2]
        for axis in range(3):
            by_red, by_green, by_blue = YUV_FROM_RGB[axis]
            level = by_red * red + by_green * green + by_blue * blue + YUV_OFFSET[axis]
            key = key + to_cells(level, sigmas[2 + axis]) * strides[3 + axis]
        keys.append(key.flatten())
    return torch.cat(keys), tuple(strides)


def _check_regions(images: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.numel() == 0:
            raise ValueError(f"image {index} must be uint8[H, W, 3], got {image.dtype}{list(image.shape)}")
        if mask.shape != image.shape[:2]:
            raise ValueError(f"mask {index} must be {list(image.shape[:2])}, got {list(mask.shape)}")
