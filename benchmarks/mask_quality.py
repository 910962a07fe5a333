"""How good are the masks of generated images? Held against a segmenter that has only seen drawn scenes.

    python benchmarks/mask_quality.py [POOL] [--num-samples 64] [--segmenter FILE] [--steps 800]

The segmenter (mflight.minilvis.segmenter) learns from balanced MiniLVIS scenes whose masks are exact;
--segmenter names a file to keep it in. Without POOL, the default generator draws --num-samples mosaics, and
draws them once more without the bilateral solver: the same images, other masks.

Of each instance: the IoU of its mask with what the segmenter finds in its box, enlarged by a quarter, and
whether the segmenter names most of the mask's pixels as the class asked for. The same is measured on unseen
drawn mosaics with exact masks, which tells how good the segmenter is. The last line is `RESULT {json}`, in
percent.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from drawn_pool import draw_mosaics  # noqa: E402

from mflight.evaluation.mask_quality import LabeledImage, compare_masks  # noqa: E402
from mflight.functional.masks import rle_decode  # noqa: E402
from mflight.minilvis.segmenter import Segmenter, train_segmenter  # noqa: E402
from mflight.minilvis.species import SPECIES  # noqa: E402
from mflight.synthesis.pool.folder import PoolReader  # noqa: E402
from mflight.synthesis.pool.packing import PoolSample  # noqa: E402

CLASS_INDEX = {species.category_id: index for index, species in enumerate(SPECIES, start=1)}


def load_segmenter(file: Path | None, steps: int) -> Segmenter:
    """Train it, or read what an earlier call has kept."""
    if file is not None and file.is_file():
        segmenter = Segmenter()
        segmenter.load_state_dict(torch.load(file, weights_only=True))
        return segmenter.eval()
    segmenter = train_segmenter(num_steps=steps)
    if file is not None:
        torch.save(segmenter.state_dict(), file)
    return segmenter


def generate(folder: Path, num_samples: int, *overrides: str) -> Path:
    """Draw a pool with the default generator."""
    command = ["-m", "mflight.generate", f"num_samples={num_samples}", f"paths.pool_dir={folder}", *overrides]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def read_pool(folder: Path) -> Iterator[PoolSample]:
    reader = PoolReader(folder)
    yield from map(reader.read, reader.poll())


def labeled(samples: Iterable[PoolSample]) -> list[LabeledImage]:
    """Return image, masks and category ids of each sample."""
    return [
        (
            sample.image,
            np.stack([rle_decode(one["segmentation"]) for one in sample.annotations]).astype(bool),
            [one["category_id"] for one in sample.annotations],
        )
        for sample in samples
    ]


def measure(images: list[LabeledImage], segmenter: Segmenter) -> dict[str, object]:
    """Return mIoU, share of agreeing classes, and both by class."""
    quality = compare_masks(images, segmenter.find)
    agreeing: dict[str, list[bool]] = {}
    for image, masks, category_ids in images:
        classes = segmenter.classes(image)
        for mask, category_id in zip(masks, category_ids, strict=True):
            index = CLASS_INDEX[category_id]
            counts = np.bincount(classes[mask], minlength=len(SPECIES) + 1)
            agreeing.setdefault(SPECIES[index - 1].name, []).append(bool(counts[1:].argmax() + 1 == index))
    names = {species.category_id: species.name for species in SPECIES}
    ious = {names[row["category_id"]]: row["mIoU"] for row in quality.per_class()}
    return {
        "instances": quality.num_instances,
        "mIoU": quality.compute()["mIoU"],
        "class_agreement": 100.0 * float(np.mean([one for own in agreeing.values() for one in own])),
        "by_class": {
            name: [ious[name], 100.0 * float(np.mean(own))] for name, own in sorted(agreeing.items())
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path, nargs="?")
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--segmenter", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = load_segmenter(args.segmenter, args.steps)
    figures = {"drawn, exact masks": measure(labeled(draw_mosaics(args.num_samples, seed=77)), segmenter)}
    if args.pool is not None:
        figures["pool"] = measure(labeled(read_pool(args.pool)), segmenter)
    else:
        with tempfile.TemporaryDirectory() as folder:
            solver = "diffusion.synthesizer.labeler.num_bilateral_passes"
            for name, overrides in {"generated": [], "without the solver": [f"++{solver}=0"]}.items():
                pool = generate(Path(folder) / name.replace(" ", "_"), args.num_samples, *overrides)
                figures[name] = measure(labeled(read_pool(pool)), segmenter)
    for name, found in figures.items():
        print(f"{name:<20} {found['instances']:5d} instances  mIoU {found['mIoU']:5.1f}  ", end="")
        print(f"class agreement {found['class_agreement']:5.1f}")
    last = list(figures.values())[1]
    for name, (iou, agreement) in last["by_class"].items():
        print(f"  {name:<16} mIoU {iou:5.1f}  class agreement {agreement:5.1f}")
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 1))
    print("RESULT", json.dumps(rounded))


if __name__ == "__main__":
    main()
