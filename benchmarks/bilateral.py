"""How fast is the bilateral solver per region, at equal result, on one CPU thread?

The plain solver below follows the paper step by step and is written for this comparison only: coordinates
hashed as floats, `numpy.unique` to find the vertices, one sparse matrix for splatting and one for each axis
of the blur, scipy's `cg`, and a new grid for each pass. Ours is `mflight.functional.bilateral`. The last
line is ``RESULT {json}``.

    OMP_NUM_THREADS=1 python benchmarks/bilateral.py
"""

import argparse
import json
import time

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import cg

from mflight.functional.bilateral import (
    YUV_FROM_RGB,
    YUV_OFFSET,
    BilateralGrid,
    BilateralSettings,
    refine_mask,
)

NUM_PASSES = 2


class PlainGrid:
    """Barron & Poole's bilateral grid, as their paper tells it."""

    def __init__(self, image: np.ndarray, sigma_spatial_px: float = 16):
        height, width = image.shape[:2]
        red, green, blue = np.moveaxis(image.astype(np.float64), 2, 0)
        # From left to right: a matrix product may round otherwise and put a pixel into the next cell.
        yuv = np.dstack([r * red + g * green + b * blue for r, g, b in YUV_FROM_RGB]) + YUV_OFFSET
        rows, columns = np.mgrid[:height, :width]
        places = columns / sigma_spatial_px, rows / sigma_spatial_px
        cells = np.dstack([*places, yuv / [16, 8, 8]]).astype(int)
        coordinates = cells.reshape(-1, 5).astype(np.float64)
        self.hash_weights = 255.0 ** np.arange(5)
        hashes = coordinates @ self.hash_weights
        self.hashes, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        coordinates = coordinates[first]
        ones = np.ones(len(hashes))
        self.splat = sparse.csr_matrix((ones, (inverse, np.arange(len(hashes)))))
        self.blurs = []
        for axis in range(5):
            blur = 0.0
            for offset in (-1.0, 1.0):
                neighbours = coordinates.copy()
                neighbours[:, axis] += offset
                wanted = neighbours @ self.hash_weights
                place = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
                found = np.flatnonzero(self.hashes[place] == wanted)
                shape = (len(self.hashes),) * 2
                blur = blur + sparse.csr_matrix((np.ones(len(found)), (found, place[found])), shape=shape)
            self.blurs.append(blur)

    def blur(self, values: np.ndarray) -> np.ndarray:
        blurred = 2 * len(self.blurs) * values
        for matrix in self.blurs:
            blurred = blurred + matrix @ values
        return blurred


def solve_plainly(image: np.ndarray, mask: np.ndarray, sigma_spatial_px: float = 16) -> np.ndarray:
    grid = PlainGrid(image, sigma_spatial_px)
    num_pixels = grid.splat @ np.ones(mask.size)
    scale = np.ones_like(num_pixels)
    for _ in range(10):
        scale = np.sqrt(scale * num_pixels / grid.blur(scale))
    mass = sparse.diags(scale * grid.blur(scale))
    scales = sparse.diags(scale)
    blur = sparse.identity(len(scale)) * 10 + sum(grid.blurs)
    confidence = np.full(mask.size, 0.999)
    weight = grid.splat @ confidence
    system = 256.0 * (mass - scales @ blur @ scales) + sparse.diags(weight)
    right_side = grid.splat @ (confidence * mask.ravel() * 255.0)
    preconditioner = sparse.diags(1.0 / np.maximum(system.diagonal(), 1e-5))
    solution, _ = cg(system, right_side, x0=right_side / weight, M=preconditioner, maxiter=25, rtol=1e-5)
    return (grid.splat.T @ solution).reshape(mask.shape)


def refine_plainly(
    image: np.ndarray, mask: np.ndarray, sigma_spatial_px: float = 16
) -> tuple[np.ndarray, np.ndarray]:
    softs = []
    for _ in range(NUM_PASSES):
        softs.append(solve_plainly(image, mask, sigma_spatial_px))
        mask = softs[-1] / softs[-1].max() > 0.5
    return mask, np.stack(softs)


def draw_case(size_hw: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A shaded object on a shaded ground with sensor noise, and a coarse mask, shifted and too round."""
    draws = np.random.default_rng(seed)
    height, width = size_hw
    rows, columns = np.mgrid[:height, :width]
    y, x = rows / height - 0.5, columns / width - 0.5
    radius = 0.3 + 0.06 * np.cos(5 * np.arctan2(y, x) + draws.uniform(0, 6))
    truth = np.hypot(y, x) < radius
    ground, colour = draws.uniform(60, 190, (2, 3))
    shade = 35 * np.sin(6 * x + draws.uniform(0, 6)) + 30 * np.cos(9 * y)
    image = np.where(truth[..., None], colour, ground) + shade[..., None] + draws.normal(0, 3, (*size_hw, 3))
    coarse = np.hypot(y - 0.04, x + 0.03) < 0.3
    return image.clip(0, 255).astype(np.uint8), coarse


def best_seconds(function, cases: list, repeats: int) -> float:
    """Return the CPU seconds per case of the best repeat: a busy machine does not count."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        for image, mask in cases:
            function(image, mask)
        seconds.append((time.process_time() - start) / len(cases))
    return min(seconds)


def check_equal(cases: list) -> float:
    """Return the largest difference of the soft outputs as a share of their range; masks must be the same."""
    worst = 0.0
    for image, mask in cases:
        expected_mask, expected = refine_plainly(image, mask)
        ours_mask, ours = refine_mask(image, mask, NUM_PASSES)
        assert (ours_mask == expected_mask).all(), "the masks differ"
        worst = max(worst, float(np.abs(ours - expected).max()) / 255)
    assert worst < 1e-5, f"the soft outputs differ by {worst:.1e} of the range"
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-hw", type=int, nargs=2, default=(448, 576))
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [draw_case(tuple(args.size_hw), seed) for seed in range(args.cases)]
    vertices = np.mean([BilateralGrid(image, BilateralSettings()).num_vertices for image, _ in cases])
    difference = check_equal(cases)
    plain_s = best_seconds(refine_plainly, cases, args.repeats)
    ours_s = best_seconds(refine_mask, cases, args.repeats)
    height, width = args.size_hw
    print(f"{args.cases} regions of {height} x {width} px, {vertices:.0f} vertices, 2 passes, 1 thread")
    print(f"plain  {plain_s * 1e3:7.1f} ms per region")
    print(f"ours   {ours_s * 1e3:7.1f} ms per region: {plain_s / ours_s:.2f} x")
    print(f"the masks are equal, the soft outputs within {difference:.0e} of their range")
    result = {
        "bilateral_speedup": round(plain_s / ours_s, 2),
        "plain_ms": round(plain_s * 1e3, 1),
        "ours_ms": round(ours_s * 1e3, 1),
        "max_soft_difference": difference,
    }
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
