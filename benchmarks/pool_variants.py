"""Take apart what separates generated images from a perfect generator's: pools that differ in one thing each.

    python benchmarks/pool_variants.py POOL OUT [--judges FILE] [--seed 5]
    python train.py synthesis=replay paths.pool_dir=OUT/VARIANT

From a pool of the mini checkpoint it writes, with as many images each, into OUT:

- `confirmed`: only the instances whose class the classifier of the drawn world sees;
- `remasked`: the same images with the segmenter's masks, where it finds something in an instance's box;
- `confirmed_remasked`: both;
- `drawn`: the painter's own mosaics, a perfect generator;
- `drawn_worn`: the same with masks shrunk, grown or moved until their mean IoU is that of the generated ones.

It prints what the judges say of each, and ends with `RESULT {json}`.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from drawn_pool import draw_mosaics  # noqa: E402
from mask_quality import Judges, labeled, measure, read_pool  # noqa: E402

from mflight.functional.masks import mask_to_annotation, mask_to_box, rle_decode  # noqa: E402
from mflight.synthesis.pool.packing import PoolSample  # noqa: E402
from mflight.synthesis.pool.writer import PoolWriter  # noqa: E402


def confirm(sample: PoolSample, judges: Judges) -> PoolSample:
    """Keep the instances whose class the classifier sees; the others lose their label."""
    kept = [
        one
        for one in sample.annotations
        if judges.see(sample.image, rle_decode(one["segmentation"]).astype(bool)) == one["category_id"]
    ]
    return replace(sample, annotations=kept)


def remask(sample: PoolSample, judges: Judges) -> PoolSample:
    """Give each instance the mask that the segmenter finds in its box."""
    if not sample.annotations:
        return sample
    masks = [rle_decode(one["segmentation"]).astype(bool) for one in sample.annotations]
    found = judges.segmenter.find(sample.image, np.array([mask_to_box(mask) for mask in masks], dtype=float))
    return replace(
        sample,
        annotations=[
            {**one, **mask_to_annotation(new if new.any() else old)}
            for one, old, new in zip(sample.annotations, masks, found, strict=True)
        ],
    )


def wear(sample: PoolSample, wanted_iou: float, draws: np.random.Generator) -> PoolSample:
    """Shrink, grow or move each mask until its IoU with itself is below a draw around ``wanted_iou``."""
    worn = []
    for one in sample.annotations:
        mask = rle_decode(one["segmentation"]).astype(bool)
        goal = float(np.clip(draws.normal(wanted_iou, 0.1), 0.3, 0.98))
        way, shift = draws.integers(3), draws.choice([-1, 1], size=2)
        new = mask
        for _ in range(20):
            if way == 0:
                step = ndimage.binary_erosion(new)
            elif way == 1:
                step = ndimage.binary_dilation(new)
            else:
                step = ndimage.shift(new.view(np.uint8), shift, order=0).view(bool)
            if not step.any() or (step & mask).sum() / (step | mask).sum() < goal:
                break
            new = step
        worn.append({**one, **mask_to_annotation(new)})
    return replace(sample, annotations=worn)


def write(folder: Path, samples: Iterable[PoolSample]) -> int:
    """Write a pool; samples without an instance are left out. Return how many there are."""
    count = 0
    with PoolWriter(folder, "variant") as writer:
        for sample in samples:
            if sample.annotations:
                writer.append(sample, index=count)
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--judges", type=Path)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    judges = Judges.load(args.judges)
    generated = list(read_pool(args.pool))
    drawn = list(draw_mosaics(len(generated), args.seed))
    iou = measure(labeled(generated), judges)["mIoU"] / 100
    draws = np.random.default_rng(args.seed)
    confirmed = [confirm(sample, judges) for sample in generated]
    pools = {
        "confirmed": confirmed,
        "remasked": [remask(sample, judges) for sample in generated],
        "confirmed_remasked": [remask(sample, judges) for sample in confirmed],
        "drawn": drawn,
        "drawn_worn": [wear(sample, iou, draws) for sample in drawn],
    }
    figures = {}
    for name, samples in {"generated": generated, **pools}.items():
        found = measure(labeled(one for one in samples if one.annotations), judges)
        images = len(samples) if name == "generated" else write(args.out / name, samples)
        figures[name] = {"images": images, **{k: v for k, v in found.items() if k != "by_class"}}
        print(f"{name:<20}", {key: round(value, 1) for key, value in figures[name].items()}, flush=True)
    print("RESULT", json.dumps(figures))


if __name__ == "__main__":
    main()
