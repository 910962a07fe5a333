"""The fast bilateral solver: a mask is moved to the edges of its image. Pure functions of arrays, in float64.

Pixels of like place and colour share one vertex of a sparse grid, and the mask is smoothed among the vertices
by one linear system. The grid depends on the image alone, so all passes share it; its vertices are known by
packed integer keys. `refine_mask` is for the CPU; `mflight.functional.bilateral_batch` solves many regions
together on a device.

Source:
    Barron & Poole, "The Fast Bilateral Solver", ECCV 2016; the numbers of MosaicFusion, arXiv:2309.13042.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

# BT.601, summed from left to right in float64: gray 128 has the luma 127.99999999999999, as published.
YUV_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
YUV_OFFSET = (0.0, 128.0, 128.0)
LEAST_DIAGONAL = 1e-5  # of the preconditioner; a vertex with pixels reaches its confidence at least
_MAX_TABLE_ENTRIES = 2**26


@dataclass(frozen=True)
class BilateralSettings:
    """The numbers of the solver; the defaults are those published for images of about 400 x 500 px.

    Attributes:
        sigma_spatial_px: side of a grid cell in px. Small images want small cells.
        sigma_luma: grid cell along luma, in 8-bit levels.
        sigma_chroma: grid cell along each chroma axis, in 8-bit levels.
        smoothness: weight of smoothness against the target (lambda).
        confidence: weight of the target at every pixel, in (0, 1].
        blur_self_weight: of a vertex in the blur; each of its neighbours at +-1 along 5 axes weighs 1.
        num_bistochastize_steps: after which the blur's rows sum nearly to the pixels of their vertices.
        max_iterations: of conjugate gradients. More of them give another, smoother result.
        tolerance: the iterations also end when the residual is this share of the right-hand side.
        cut: pixels above this share of the peak are object, in (0, 1).
    """

    sigma_spatial_px: float = 16.0
    sigma_luma: float = 16.0
    sigma_chroma: float = 8.0
    smoothness: float = 256.0
    confidence: float = 0.999
    blur_self_weight: float = 10.0
    num_bistochastize_steps: int = 10
    max_iterations: int = 25
    tolerance: float = 1e-5
    cut: float = 0.5


def refine_mask(
    image: np.ndarray, mask: np.ndarray, num_passes: int = 2, settings: BilateralSettings | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Move the outline of a mask to the edges of its image.

    Each pass solves for the smoothest picture that stays near the mask, where smooth means alike among pixels
    alike in place and colour, and cuts it at half of its peak. The next pass starts from the binary result.

    Args:
        image: ``uint8[H, W, 3]``, RGB: the region, cut from the decoded canvas.
        mask: ``bool`` or ``uint8[H, W]``; every value but 0 is object.
        num_passes: how often the solver is applied; 0 gives the mask back.
        settings: the numbers of the solver; the published ones if none are given.

    Returns:
        The refined mask, ``bool[H, W]``, and the solver's output of each pass before its cut,
        ``float64[num_passes, H, W]``, with the target scaled to 0..255. An empty mask stays empty, and a full
        one full.

    Raises:
        ValueError: if the image is not ``uint8[H, W, 3]``, or if the mask is of another size.

    Example:
        >>> image = np.zeros((32, 32, 3), dtype=np.uint8)
        >>> image[:, 12:] = 255  # a white wall from column 12 on
        >>> mask = np.zeros((32, 32), dtype=bool)
        >>> mask[:, 14:] = True
        >>> refined, _ = refine_mask(image, mask)
        >>> int(refined.argmax(axis=1).max())
        12
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"the image must be uint8[H, W, 3], got {image.dtype}{list(image.shape)}")
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask must be of the image's size {image.shape[:2]}, got {mask.shape}")
    settings = settings or BilateralSettings()
    mask = mask != 0
    softs = np.zeros((num_passes, *mask.shape))
    if num_passes == 0:
        return mask, softs
    grid = BilateralGrid(image, settings)
    object_pixels = grid.splat(mask)
    for index in range(num_passes):
        vertex_values = grid.smooth(object_pixels)
        is_object = vertex_values > max(settings.cut * vertex_values.max(), 0.0)
        softs[index] = grid.slice(vertex_values)
        object_pixels = is_object * grid.num_pixels
    return grid.slice(is_object), softs


class BilateralGrid:
    """The occupied vertices of an image's bilateral grid, with the linear system between them.

    It holds ``vertex_of_pixel``, ``int32[H, W]``, the count ``num_vertices`` (V, about 13,000 for
    448 x 576 px), ``num_pixels`` of each vertex, ``float64[V]``, and ``system``, the sparse symmetric
    ``float64[V, V]`` A of the solver.

    Args:
        image: ``uint8[H, W, 3]``, RGB.
        settings: the numbers of the solver.
    """

    def __init__(self, image: np.ndarray, settings: BilateralSettings) -> None:
        self.settings = settings
        keys, strides = pixel_keys(image, settings)
        vertices, self.vertex_of_pixel = _index_keys(keys)
        self.num_vertices = len(vertices)
        blur = _blur_matrix(vertices, strides, settings.blur_self_weight)
        self.num_pixels = np.bincount(self.vertex_of_pixel.ravel()).astype(np.float64)
        scale, mass = _bistochastize(blur, self.num_pixels, settings.num_bistochastize_steps)
        self._weight = settings.confidence * self.num_pixels
        self.system = _system_matrix(blur, scale, mass, self._weight, settings.smoothness)
        self._inverse_diagonal = 1.0 / np.maximum(self.system.diagonal(), LEAST_DIAGONAL)

    def splat(self, values: np.ndarray) -> np.ndarray:
        """Return ``float64[V]``: the sum of ``[H, W]`` over the pixels of each vertex."""
        return np.bincount(self.vertex_of_pixel.ravel(), weights=values.ravel(), minlength=self.num_vertices)

    def slice(self, vertex_values: np.ndarray) -> np.ndarray:
        """Return ``[H, W]``: at each pixel, the value of its vertex."""
        return vertex_values[self.vertex_of_pixel]

    def smooth(self, object_pixels: np.ndarray) -> np.ndarray:
        """Return ``float64[V]``: the answer to a mask of so many pixels at each vertex, in 0..255."""
        right_side = 255 * self.settings.confidence * object_pixels
        return self._solve(right_side, start=right_side / self._weight)

    def _solve(self, right_side: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return ``float64[V]``: conjugate gradients on the system, preconditioned by its diagonal."""
        stop_at = self.settings.tolerance * np.linalg.norm(right_side)
        solution = start
        residual = right_side - self.system @ solution
        direction = np.zeros_like(start)
        last_product = 1.0
        for _ in range(self.settings.max_iterations):
            if np.linalg.norm(residual) <= stop_at:
                break
            preconditioned = self._inverse_diagonal * residual
            product = residual @ preconditioned
            direction *= product / last_product
            direction += preconditioned
            response = self.system @ direction
            step = product / (direction @ response)
            solution += step * direction
            residual -= step * response
            last_product = product
        return solution


def pixel_keys(image: np.ndarray, settings: BilateralSettings) -> tuple[np.ndarray, tuple[int, ...]]:
    """Number the grid cell of each pixel.

    The five coordinates are packed into one whole number, place first. Each axis has one cell too many, which
    stays empty: a step of +-1 past the last cell of an axis meets no pixel.

    Args:
        image: ``uint8[H, W, 3]``, RGB.
        settings: its three sigmas are used.

    Returns:
        ``int64[H, W]``, the key of each pixel, ``>= 0``; and the step in key for +1 along each of the 5 axes,
        largest first.
    """
    height, width = image.shape[:2]
    rows = np.floor(np.arange(height) / settings.sigma_spatial_px)[:, None]
    columns = np.floor(np.arange(width) / settings.sigma_spatial_px)[None, :]
    cells = [rows, columns, *_colour_cells(image, settings)]
    sizes = [int(cell.max()) + 2 for cell in cells]
    strides = tuple(math.prod(sizes[axis + 1 :]) for axis in range(5))
    keys = rows * strides[0] + columns * strides[1]  # whole numbers, exact in float64
    for cell, stride in zip(cells[2:], strides[2:], strict=True):
        keys += np.multiply(cell, stride, out=cell)
    return keys.astype(np.int64), strides


def _colour_cells(image: np.ndarray, settings: BilateralSettings) -> list[np.ndarray]:
    """Return three ``float64[H, W]``: each pixel's grid cell along Y, U and V, counted from the least."""
    red, green, blue = (image[..., channel].astype(np.float64) for channel in range(3))
    sigmas = (settings.sigma_luma, settings.sigma_chroma, settings.sigma_chroma)
    term = np.empty_like(red)  # in place: fresh pages cost more than the arithmetic
    cells = []
    for (by_red, by_green, by_blue), offset, sigma in zip(YUV_FROM_RGB, YUV_OFFSET, sigmas, strict=True):
        cell = red * by_red
        cell += np.multiply(green, by_green, out=term)
        cell += np.multiply(blue, by_blue, out=term)
        cell += offset
        cell /= sigma
        np.floor(cell, out=cell)
        cell -= cell.min()
        cells.append(cell)
    return cells


def _index_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct keys and each pixel's place among them, by a table where one fits."""
    num_entries = int(keys.max()) + 1
    if num_entries > _MAX_TABLE_ENTRIES:
        vertices, vertex_of_pixel = np.unique(keys, return_inverse=True)
        return vertices, vertex_of_pixel.reshape(keys.shape).astype(np.int32)
    occupied = np.zeros(num_entries, dtype=bool)
    occupied[keys.ravel()] = True
    vertices = np.flatnonzero(occupied)
    vertex_of_key = np.empty(num_entries, dtype=np.int32)
    vertex_of_key[vertices] = np.arange(len(vertices), dtype=np.int32)
    return vertices, vertex_of_key[keys]


def _blur_matrix(vertices: np.ndarray, strides: tuple[int, ...], self_weight: float) -> csr_array:
    """Return the blur ``B`` as ``float64[V, V]``, its rows in the order of the columns."""
    offsets = np.array([-stride for stride in strides] + [0] + list(reversed(strides)), dtype=np.int64)
    wanted = vertices[:, None] + offsets  # [V, 11]
    columns = np.empty(wanted.shape, dtype=np.int32)
    for index in range(len(offsets)):
        columns[:, index] = np.searchsorted(vertices, wanted[:, index])
    np.minimum(columns, len(vertices) - 1, out=columns)
    found = vertices[columns] == wanted
    weights = np.broadcast_to(np.where(offsets == 0, self_weight, 1.0), wanted.shape)
    row_starts = np.concatenate([[0], found.sum(axis=1).cumsum()]).astype(np.int32)
    return csr_array((weights[found], columns[found], row_starts), shape=(len(vertices),) * 2)


def _bistochastize(blur: csr_array, num_pixels: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``n`` and ``m``, ``float64[V]``: diag(n) B diag(n) has the row sums m, near ``num_pixels``."""
    scale = np.ones_like(num_pixels)
    for _ in range(num_steps):
        scale = np.sqrt(scale * num_pixels / (blur @ scale))
    return scale, scale * (blur @ scale)


def _system_matrix(
    blur: csr_array, scale: np.ndarray, mass: np.ndarray, weight: np.ndarray, smoothness: float
) -> csr_array:
    """Return A = smoothness (diag(m) - diag(n) B diag(n)) + diag(weight)."""
    rows = np.repeat(np.arange(len(scale), dtype=np.int32), np.diff(blur.indptr))
    values = -smoothness * blur.data * scale[rows] * scale[blur.indices]
    diagonal = np.flatnonzero(blur.indices == rows)
    values[diagonal] += smoothness * mass + weight
    return csr_array((values, blur.indices, blur.indptr), shape=blur.shape)
