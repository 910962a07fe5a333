"""Fill a pool with mosaics that MiniLVIS's own painter draws: what a perfect generator would give.

    python benchmarks/drawn_pool.py POOL_DIR [--count 150] [--seed 5]
    python train.py synthesis=replay paths.pool_dir=POOL_DIR

Held against `synthesis=none` and the default job, it parts what the generator's quality costs from what
mixing itself does. Each canvas has four regions: one rare class in turn, and three of all classes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mflight.functional.masks import mask_to_annotation
from mflight.minilvis.scene import Placement, draw_placement, draw_scene
from mflight.minilvis.species import SPECIES
from mflight.minilvis.textures import BACKGROUNDS
from mflight.synthesis.pool.packing import PoolSample
from mflight.synthesis.pool.writer import PoolWriter

REGION_PX, COLUMNS = 64, 2
RADIUS_RANGE_PX = (0.27 * REGION_PX, 0.47 * REGION_PX)  # as in the scenes the mini checkpoint is trained on


def draw_mosaics(count: int, seed: int) -> Iterator[PoolSample]:
    """Yield mosaics whose masks are exact."""
    draws = np.random.default_rng(seed)
    rare = [species for species in SPECIES if species.frequency == "rare"]
    for index in range(count):
        partners = [SPECIES[draws.integers(len(SPECIES))] for _ in range(COLUMNS**2 - 1)]
        chosen = [rare[index % len(rare)], *partners]
        draws.shuffle(chosen)
        placements, boxes = [], []
        for region, species in enumerate(chosen):
            x, y = REGION_PX * (region % COLUMNS), REGION_PX * (region // COLUMNS)
            placement = draw_placement(species, (REGION_PX, REGION_PX), RADIUS_RANGE_PX, draws)
            placements.append(_moved(placement, x, y))
            boxes.append([x, y, x + REGION_PX, y + REGION_PX])
        background = list(BACKGROUNDS)[draws.integers(len(BACKGROUNDS))]
        scene = draw_scene(placements, background, (COLUMNS * REGION_PX,) * 2, draws)
        yield PoolSample(
            f"drawn-{index:04d}",
            scene.image,
            [
                {"category_id": species.category_id, "region": region, **mask_to_annotation(mask)}
                for region, (species, mask) in enumerate(zip(chosen, scene.masks, strict=True))
            ],
            [
                {"category_id": species.category_id, "box": box, "rejected": None}
                for species, box in zip(chosen, boxes, strict=True)
            ],
            {"painter": "mflight.minilvis.scene", "seed": seed},
        )


def draw_pool(folder: Path, count: int = 150, seed: int = 5) -> None:
    """Fill a pool."""
    with PoolWriter(folder, "painter") as writer:
        for index, sample in enumerate(draw_mosaics(count, seed)):
            writer.append(sample, index=index)


def _moved(placement: Placement, x: float, y: float) -> Placement:
    center_x, center_y = placement.center_xy
    return replace(placement, center_xy=(center_x + x, center_y + y))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool_dir", type=Path)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    draw_pool(args.pool_dir, args.count, args.seed)
    print(f"{args.count} drawn mosaics are in {args.pool_dir}")


if __name__ == "__main__":
    main()
