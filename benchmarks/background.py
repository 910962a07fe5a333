"""What a detector has learnt of the background of generated images, with and without their background loss.

    python benchmarks/background.py POOL NAME=RUN [NAME=RUN ...] [--judges FILE.pt]

POOL holds samples that no RUN was trained on (another seed of `python -m mflight.generate`); each RUN is a
run folder of `train.py` on MiniLVIS. A segmenter of drawn scenes, trained here unless --judges holds one,
says where a generated image shows objects; what lies outside of the masks, a margin of 3 px left out, is a
fragment: the rest of a torn object, or an object without a label. Four kinds of boxes are looked at: those of
the labelled instances, of the fragments, of plain background (as large as these), and of the objects in real
validation images. Of each box the detector tells

- objectness: the best of the proposal network's boxes with an IoU of 0.5 with it, after the sigmoid;
- foreground: the classifier's score of all classes together.

The last line is `RESULT {json}`: means, in percent, by run and kind of box.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import box_iou

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mflight.data.lvis import LVISDataset  # noqa: E402
from mflight.data.transforms import EvalTransform  # noqa: E402
from mflight.functional.masks import label_components, mask_to_box  # noqa: E402
from mflight.minilvis.judges import Segmenter, train_segmenter  # noqa: E402
from mflight.synthesis.stream import PoolStream  # noqa: E402
from mflight.training.pool_check import load_detector  # noqa: E402
from mflight.training.run_folder import find_checkpoint, load_run_config  # noqa: E402

MIN_AREA_PX = 40
MARGIN_PX = 3
NUM_VAL_IMAGES = 60
Boxes = dict[str, Tensor]


def fragments(objects: np.ndarray, masks: Tensor) -> np.ndarray:
    """Return float[N, 4], boxes of what of bool[H, W] objects lies outside of the masks uint8[N, H, W]."""
    labelled = masks.amax(dim=0, keepdim=True).float()
    near = F.max_pool2d(labelled, 2 * MARGIN_PX + 1, stride=1, padding=MARGIN_PX)[0].numpy() > 0
    components, areas_px = label_components(objects & ~near)
    kept = [1 + number for number, area in enumerate(areas_px) if area >= MIN_AREA_PX]
    return np.array([mask_to_box(components == number) for number in kept], dtype=np.float32).reshape(-1, 4)


def plain_background(objects: np.ndarray, like: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Return float[M, 4], boxes as large as ``like`` that hold next to no object, where such are found."""
    (height, width), found = objects.shape, []
    for x1, y1, x2, y2 in like:
        side_wh = (int(x2 - x1), int(y2 - y1))
        for _ in range(30):
            left, top = draws.integers(0, width - side_wh[0] + 1), draws.integers(0, height - side_wh[1] + 1)
            if objects[top : top + side_wh[1], left : left + side_wh[0]].mean() < 0.02:
                found.append([left, top, left + side_wh[0], top + side_wh[1]])
                break
    return np.array(found, dtype=np.float32).reshape(-1, 4)


@torch.no_grad()
def look_at(detector: torch.nn.Module, image: Tensor, boxes: Tensor) -> Tensor:
    """Return float[N, 2]: objectness and foreground score of each box of an image."""
    images, _ = detector.transform([image])
    features, rpn, heads = detector.backbone(images.tensors), detector.rpn, detector.roi_heads
    levels = list(features.values())
    objectness, deltas = concat_box_prediction_layers(*rpn.head(levels))
    proposals = rpn.box_coder.decode(deltas, rpn.anchor_generator(images, levels)).reshape(-1, 4)
    on_box = box_iou(boxes, proposals) >= 0.5
    best = torch.where(on_box, objectness.sigmoid()[:, 0], 0.0).amax(dim=1)
    pooled = heads.box_roi_pool(features, [boxes], images.image_sizes)
    scores = heads.classification_loss.scores(heads.box_predictor(heads.box_head(pooled))[0])
    return torch.stack([best, scores.sum(dim=1)], dim=1)


def generated(pool: Path, dataset: LVISDataset, segmenter: Segmenter) -> list[tuple[Tensor, Boxes]]:
    """Return the images of a pool with the boxes of each kind."""
    draws, samples = np.random.default_rng(0), []
    for image, target in PoolStream(pool_dir=pool, categories=dataset.categories, max_reuse=1, publish=False):
        objects = segmenter.objects(image.permute(1, 2, 0).numpy())
        torn = fragments(objects, target["masks"])
        plain = plain_background(objects, np.concatenate([torn, target["boxes"].numpy()]), draws)
        boxes = {"labelled": target["boxes"], "fragment": torch.from_numpy(torn)}
        samples.append((EvalTransform()(image, target)[0], {**boxes, "plain": torch.from_numpy(plain)}))
    return samples


def main() -> None:
    """Look, and print the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--judges", type=Path, help="of benchmarks/mask_quality.py")
    args = parser.parse_args()
    if args.judges is None:
        segmenter = train_segmenter()
    else:
        segmenter = Segmenter().eval()
        segmenter.load_state_dict(torch.load(args.judges, weights_only=True)[0])
    result, samples = {}, None
    for name, run in (text.split("=", 1) for text in args.runs):
        run_dir, checkpoint = find_checkpoint(run)
        cfg = load_run_config(run_dir)
        if samples is None:
            val = LVISDataset(
                annotation_file=Path(cfg.data.val_annotations),
                image_root=Path(cfg.data.val_images),
                transform=EvalTransform(),
            )
            samples = generated(args.pool, val, segmenter)
            real = [val[index] for index in range(min(NUM_VAL_IMAGES, len(val)))]
            samples += [(image, {"real": target["boxes"]}) for image, target in real]
        detector = load_detector(cfg, checkpoint)
        seen: dict[str, list[Tensor]] = {}
        for image, boxes_by_kind in samples:
            for kind, boxes in boxes_by_kind.items():
                if len(boxes):
                    seen.setdefault(kind, []).append(look_at(detector, image, boxes))
        result[name] = {}
        for kind, values in seen.items():
            objectness, foreground = (100 * torch.cat(values).mean(dim=0)).tolist()
            count = sum(map(len, values))
            print(f"{name:12} {kind:10} {count:5} boxes  {objectness:5.1f}  {foreground:5.1f}")
            result[name][kind] = {"boxes": count, "objectness": objectness, "foreground": foreground}
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
