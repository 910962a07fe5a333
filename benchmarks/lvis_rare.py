"""Run `train.py experiment=lvis_rare` for some tens of steps on made LVIS-format data, on a CPU too.

    python benchmarks/lvis_rare.py                                        made-up categories
    python benchmarks/lvis_rare.py --categories lvis_v1_categories.json   those of LVIS v1
    python benchmarks/lvis_rare.py model/classification_loss=seesaw callbacks=ema     any further overrides

All 1,203 classes, the real R50-FPN from random weights, the generators with the mini checkpoint. The images
are small and few; a class has its own colour. It checks that the loss falls, that checkpoint, evaluation and
the wandb run are complete and that the generators neither die nor stop, and exits with 1 if not. The last
line is `RESULT {json}`; `peak_gb` is of all processes together (PSS).
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from main_job import ROOT, descendants, pss_bytes
from PIL import Image, ImageDraw

NUM_CLASSES, HEIGHT_PX, WIDTH_PX = 1203, 240, 320
AP_NAMES = ("AP", "APr", "APc", "APf")


def read_categories(file: str | None) -> list[dict]:
    """Return LVIS's list from a file, or one made up with its share of rare, common and frequent classes."""
    if file:
        entries = json.loads(Path(file).read_text())
        return entries["categories"] if isinstance(entries, dict) else entries
    counts = [(337, "r", 5), (461, "c", 40), (405, "f", 2000)]
    groups = [(letter, images) for number, letter, images in counts for _ in range(number)]
    return [
        {
            "id": index + 1,
            "name": f"thing_{index}_(made_up)",
            "synonyms": [f"thing_{index}"],
            "synset": f"thing.n.{index}",
            "def": f"a thing of kind {index}, made up for a trial",
            "frequency": letter,
            "image_count": images,
            "instance_count": 2 * images,
        }
        for index, (letter, images) in enumerate(groups)
    ]


def make_split(root: Path, split: str, num_images: int, categories: list[dict], seed: int) -> None:
    """Write ``{split}2017/*.jpg`` and ``lvis_v1_{split}.json``."""
    draws = np.random.default_rng(seed)
    weights = np.sqrt([category["image_count"] + 1 for category in categories])
    colours = np.random.default_rng(0).integers(0, 256, (len(categories), 3))
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        canvas = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), tuple(draws.integers(60, 200, 3).tolist()))
        chosen = draws.choice(len(categories), int(draws.integers(2, 9)), p=weights / weights.sum())
        for index in chosen.tolist():
            points = draw_outline(draws)
            ImageDraw.Draw(canvas).polygon(list(map(tuple, points)), fill=tuple(colours[index].tolist()))
            annotations.append(describe(points, len(annotations) + 1, image_id, categories[index]["id"]))
        name = f"{image_id:012d}.jpg"
        canvas.save(folder / name, quality=90)
        absent = draws.choice(len(categories), 12, replace=False).tolist()
        images.append(
            {
                "id": image_id,
                "height": HEIGHT_PX,
                "width": WIDTH_PX,
                "coco_url": f"http://images.cocodataset.org/{split}2017/{name}",
                "neg_category_ids": [categories[i]["id"] for i in absent if i not in chosen],
                "not_exhaustive_category_ids": [],
            }
        )
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"lvis_v1_{split}.json").write_text(json.dumps(content))


def draw_outline(draws: np.random.Generator) -> np.ndarray:
    """Return float[16, 2]: an uneven ellipse somewhere in the image, in px."""
    width, height = np.exp(draws.uniform(np.log(16), np.log(130), 2))
    corner = draws.uniform(0, [WIDTH_PX - width, HEIGHT_PX - height])
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * draws.uniform(0.8, 1.0, (16, 1))
    return np.round(corner + (circle + 1) / 2 * [width, height], 2)


def describe(points: np.ndarray, annotation_id: int, image_id: int, category_id: int) -> dict:
    """Return the annotation of one outline."""
    x, y = points.T
    low, side = points.min(axis=0), np.ptp(points, axis=0)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(float(value), 2) for value in (*low, *side)],
        "area": round(abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2, 2),
        "segmentation": [points.ravel().tolist()],
    }


def overrides(data: Path, run_dir: Path, options: argparse.Namespace) -> list[str]:
    """Return the command line of the run: small where it must be, LVIS's settings elsewhere."""
    return [
        "experiment=lvis_rare",
        "diffusion=mini_sd",
        "diffusion.unknown_classes=draw",
        "synthesis.max_fallback_ratio=1",  # so few steps end before the first images come
        f"data.root={data}",
        f"data.batch_size={options.batch_size}",
        "data.num_workers=0",
        f"data.epoch_steps={options.steps}",
        f"data.transform.short_sides_px=[{options.side_px}]",
        f"model.min_size={options.side_px}",
        "model.backbone.weights=none",
        f"optim.optimizer.lr={0.02 * options.batch_size / 16}",
        "optim.lr_schedule.warmup_steps=10",
        "optim.lr_schedule.milestones_steps=[]",
        f"trainer.max_steps={options.steps}",
        f"trainer.precision={options.precision}",
        "trainer.gradient_clip_val=10.0",
        "trainer.log_every_n_steps=1",
        "synthesis.warmup_steps=0",
        "synthesis.synthetic_ratio=0.25",
        "diffusion.synthesizer.region_filter.rescue=true",  # these classes are new to it: keep what it can
        "callbacks.last.every_n_train_steps=10",
        "callbacks.synthesis.every_n_steps=5",
        f"hydra.run.dir={run_dir}",
        *options.overrides,
    ]


def run(command: list[str]) -> dict[str, float]:
    """Run the job to its end; return its exit code, seconds and peak memory."""
    started, peak_bytes = time.monotonic(), 0
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        peak_bytes = max(peak_bytes, sum(map(pss_bytes, descendants(process.pid))))
        time.sleep(1.0)
    return {
        "exit_code": process.returncode,
        "wall_s": round(time.monotonic() - started, 1),
        "peak_gb": round(peak_bytes / 1e9, 2),
    }


def read_run(run_dir: Path, num_steps: int) -> dict[str, object]:
    """Return what the run left behind; a part that is missing or wrong is told in ``problems``."""
    results = json.loads((run_dir / "results.json").read_text())
    with (run_dir / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss/total"]) for row in rows if row.get("train/loss/total")]
    tenth = max(1, num_steps // 10)
    first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
    names = [f"val/{kind}/{name}" for kind in ("bbox", "segm") for name in AP_NAMES]
    figures = {name: results.get(name) for name in names}
    wandb_files = list(run_dir.glob("wandb/*run-*/run-*.wandb"))
    checkpoints = [run_dir / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    problems = {
        "steps": results["steps"] != num_steps or len(losses) != num_steps,
        "loss": not last < first,
        "checkpoints": not all(path.is_file() for path in checkpoints),
        "evaluation": any(value is None or not math.isfinite(value) for value in figures.values()),
        "per_class": len(json.loads((run_dir / "per_class.json").read_text())) != NUM_CLASSES,
        "wandb": not wandb_files or wandb_files[0].stat().st_size < 1000 * num_steps,
        "generator": bool(results["messages"]) or results.get("synthesis/generator_deaths", 0) > 0,
    }
    return {
        "loss_first": round(first, 3),
        "loss_last": round(last, 3),
        "val/segm/AP": figures["val/segm/AP"],
        "images_drawn": results.get("synthesis/images"),
        "images_dropped": results.get("synthesis/dropped"),
        "synthetic_share": results.get("synthesis/synthetic_share"),
        "messages": results["messages"],
        "problems": [name for name, is_wrong in problems.items() if is_wrong],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--categories", default=os.environ.get("MFLIGHT_LVIS_CATEGORIES"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--side-px", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--train-images", type=int, default=300)
    parser.add_argument("--val-images", type=int, default=12)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides")
    options = parser.parse_args()
    categories = read_categories(options.categories)
    with tempfile.TemporaryDirectory() as folder:
        data, run_dir = Path(folder) / "lvis", Path(folder) / "run"
        for seed, (split, number) in enumerate(
            (("train", options.train_images), ("val", options.val_images))
        ):
            make_split(data, split, number, categories, seed)
        figures = run([sys.executable, "train.py", *overrides(data, run_dir, options)])
        figures["steps"], figures["real_categories"] = options.steps, bool(options.categories)
        if figures["exit_code"] == 0:
            figures |= read_run(run_dir, options.steps)
    for name, value in figures.items():
        print(f"{name:<18} {value}")
    print("RESULT", json.dumps(figures))
    sys.exit(figures["exit_code"] or bool(figures["problems"]))


if __name__ == "__main__":
    main()
