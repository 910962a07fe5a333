"""How good are the masks of generated images? Held against a segmenter that has only seen drawn scenes.

    python benchmarks/mask_quality.py [POOL] [--num-samples 64] [--judges FILE]

Two judges that have only seen drawn MiniLVIS scenes, where masks and classes are exact: a segmenter tells
objects from background, a classifier names one object (mflight.minilvis.judges).
--judges names a file to keep them in. Without POOL, the default generator draws --num-samples mosaics, and
draws them once more without the bilateral solver: the same images, other masks.

Of each instance: the IoU of its mask with what the segmenter finds in its box, enlarged by a quarter, and
whether the classifier sees the class asked for in the 64 px around it. The same is measured on unseen drawn
mosaics with exact masks, which tells how good the judges are. The last line is `RESULT {json}`, in percent.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from drawn_pool import draw_mosaics  # noqa: E402

from mflight.evaluation.mask_quality import LabeledImage, compare_masks  # noqa: E402
from mflight.functional.masks import mask_to_box, rle_decode  # noqa: E402
from mflight.minilvis.autoencoder import to_unit  # noqa: E402
from mflight.minilvis.judges import (  # noqa: E402
    Judge,
    Segmenter,
    judge_classes,
    train_judge,
    train_segmenter,
)
from mflight.minilvis.species import SPECIES  # noqa: E402
from mflight.synthesis.pool.packing import PoolSample  # noqa: E402
from mflight.synthesis.pool.reader import PoolReader  # noqa: E402

NAMES = {species.category_id: species.name for species in SPECIES}
CLASSIFIER_STEPS = 1500
CROP_PX = 64  # what the classifier was trained on


@dataclass(frozen=True)
class Judges:
    """What the masks and the classes of generated images are held against."""

    segmenter: Segmenter
    classifier: Judge

    @classmethod
    def load(cls, file: Path | None) -> "Judges":
        """Train them, or read what an earlier call has kept."""
        if file is None or not file.is_file():
            judges = cls(train_segmenter(), train_judge(num_steps=CLASSIFIER_STEPS)[0])
            if file is not None:
                torch.save([judges.segmenter.state_dict(), judges.classifier.state_dict()], file)
            return judges
        judges = cls(Segmenter().eval(), Judge().eval())
        for judge, weights in zip(
            (judges.segmenter, judges.classifier), torch.load(file, weights_only=True), strict=True
        ):
            judge.load_state_dict(weights)
        return judges

    def see(self, image: np.ndarray, mask: np.ndarray) -> int:
        """Return the category id that the classifier sees where the mask is."""
        x1, y1, x2, y2 = mask_to_box(mask)
        half = CROP_PX // 2
        x, y = (
            int(np.clip((low + high) // 2 - half, 0, side - CROP_PX))
            for low, high, side in ((x1, x2, image.shape[1]), (y1, y2, image.shape[0]))
        )
        crop = to_unit(image[None, y : y + CROP_PX, x : x + CROP_PX])
        return SPECIES[int(judge_classes(self.classifier, crop))].category_id


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


def measure(images: list[LabeledImage], judges: Judges) -> dict[str, object]:
    """Return mIoU, share of confirmed classes, and both by class."""
    quality = compare_masks(images, judges.segmenter.find)
    confirmed: dict[int, list[bool]] = {}
    for image, masks, category_ids in images:
        for mask, category_id in zip(masks, category_ids, strict=True):
            confirmed.setdefault(category_id, []).append(judges.see(image, mask) == category_id)
    ious = {row["category_id"]: row["mIoU"] for row in quality.per_class()}
    return {
        "instances": quality.num_instances,
        "mIoU": quality.compute()["mIoU"],
        "class_agreement": 100.0 * float(np.mean([one for own in confirmed.values() for one in own])),
        "by_class": {NAMES[c]: [ious[c], 100.0 * float(np.mean(confirmed[c]))] for c in sorted(confirmed)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path, nargs="?")
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--judges", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    judges = Judges.load(args.judges)
    figures = {"drawn, exact masks": measure(labeled(draw_mosaics(args.num_samples, seed=77)), judges)}
    if args.pool is not None:
        figures["pool"] = measure(labeled(read_pool(args.pool)), judges)
    else:
        with tempfile.TemporaryDirectory() as folder:
            solver = "diffusion.synthesizer.labeler.num_bilateral_passes"
            for name, overrides in {"generated": [], "without the solver": [f"++{solver}=0"]}.items():
                pool = generate(Path(folder) / name.replace(" ", "_"), args.num_samples, *overrides)
                figures[name] = measure(labeled(read_pool(pool)), judges)
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
