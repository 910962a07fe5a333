"""Make a dataset in LVIS v1 format of any size up to the full one: a real long tail, drawn outlines.

    python benchmarks/lvis_format_data.py --root DIR                        train as large as LVIS v1's
    python benchmarks/lvis_format_data.py --root DIR --train-images 400 --val-images 40

Entries are written one after another, so the memory stays small. Images are a few files (``--files``), which
many entries have under names of their own, linked to them. ``--categories`` takes a category list of LVIS
with its counts; without it the counts fall by a power law.
"""

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

LVIS_IMAGES, LVIS_INSTANCES = 100_170, 1_270_141
SIZES_HW = ((480, 640), (427, 640), (640, 480), (640, 427), (500, 333))
NUM_OUTLINES = 4096


def read_categories(path):
    """Return the categories of a list on disk, or 1,203 made ones, ``image_count`` in 1 .. about 2,000."""
    if path is not None:
        return json.loads(Path(path).read_text())
    ranks = np.random.default_rng(0).permutation(1203)
    images = np.maximum(1, np.round(1976 * np.exp(-ranks / 1203 * 7.6))).astype(int)
    images = np.round(images * 360_952 / images.sum()).clip(1).astype(int)
    instances = np.maximum(images, np.round(images * LVIS_INSTANCES / images.sum())).astype(int)
    instances[images.argmax()] += LVIS_INSTANCES - instances.sum()
    letters = np.array(["r", "c", "f"])[np.searchsorted([10, 100], images)]
    columns = zip(images.tolist(), instances.tolist(), letters.tolist(), strict=True)
    return [
        {"id": i, "name": f"class_{i}", "image_count": n, "instance_count": m, "frequency": letter}
        for i, (n, m, letter) in enumerate(columns, start=1)
    ]


def scale_counts(categories, num_images):
    """Return the counts of a dataset of ``num_images`` images; a class keeps one image at least."""
    share = num_images / LVIS_IMAGES
    scaled = []
    for category in categories:
        images = min(max(1, round(category["image_count"] * share)), num_images)
        instances = max(images, round(category["instance_count"] * share))
        scaled.append({**category, "image_count": images, "instance_count": instances})
    return scaled


def deal_instances(categories, num_images, draws):
    """Return image index and category index of each instance, sorted by image."""
    image, label = [], []
    for index, category in enumerate(categories):
        chosen = draws.choice(num_images, category["image_count"], replace=False)
        more = draws.integers(len(chosen), size=category["instance_count"] - len(chosen))
        image.append(np.concatenate([chosen, chosen[more]]))
        label.append(np.full(category["instance_count"], index))
    image, label = np.concatenate(image), np.concatenate(label)
    order = np.argsort(image, kind="stable")
    return image[order], label[order]


def draw_outlines(draws):
    """Return closed outlines in the unit square, 6 to some hundred points (41 on average, as in LVIS)."""
    counts = np.exp(draws.normal(3.42, 0.75, NUM_OUTLINES)).clip(6, 400).astype(int)
    outlines = []
    for count in counts:
        turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
        waves = [draws.normal(0, 0.18 / k) * np.cos(k * turn + draws.uniform(0, 6.3)) for k in range(2, 7)]
        radius = (1 + sum(waves)).clip(0.2)
        points = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
        low, high = points.min(axis=0), points.max(axis=0)
        outlines.append((points - low) / (high - low))
    return outlines


def shoelace(points):
    x, y = points.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def write_annotations(path, *, num_images, categories, files, seed=0, root=None):
    """Write one annotation file and return the number of its instances.

    ``files`` are pairs of a path such as ``train2017/000000000001.jpg`` and ``(H, W)``, taken in turn; each
    entry has a name of its own, which is linked to its file below ``root``.
    """
    draws = np.random.default_rng(seed)
    outlines = draw_outlines(draws)
    areas = [shoelace(outline) for outline in outlines]
    categories = scale_counts(categories, num_images)
    image_of, label_of = deal_instances(categories, num_images, draws)
    ids = np.array([category["id"] for category in categories])
    first = np.searchsorted(image_of, np.arange(num_images + 1))
    encode = msgspec.json.encode
    with Path(path).open("wb") as file:
        file.write(b'{"info":{"description":"made in LVIS v1 format"},"licenses":[],"categories":')
        file.write(encode(categories) + b',"images":[')
        for index in range(num_images):
            present = set(label_of[first[index] : first[index + 1]].tolist())
            entry = image_entry(index, files[index % len(files)], present, ids, draws, root)
            file.write((b"," if index else b"") + encode(entry))
        file.write(b'],"annotations":[')
        for number, (index, label) in enumerate(zip(image_of.tolist(), label_of.tolist(), strict=True)):
            shape = number % NUM_OUTLINES
            entry = {"id": number + 1, "image_id": index + 1, "category_id": int(ids[label])}
            entry |= place_outline(outlines[shape], areas[shape], files[index % len(files)][1], draws)
            file.write((b"," if number else b"") + encode(entry))
        file.write(b"]}")
    return len(image_of)


def image_entry(index, file, present, ids, draws, root):
    shared, (height, width) = Path(file[0]), file[1]
    name = shared.with_stem(f"{shared.stem}_{index + 1}")
    if root is not None and not (root / name).exists():
        (root / name).hardlink_to(root / shared)
    negatives = sorted({int(ids[i]) for i in draws.integers(len(ids), size=6) if i not in present})
    return {
        "id": index + 1,
        "height": height,
        "width": width,
        "coco_url": f"http://images.cocodataset.org/{name}",
        "neg_category_ids": negatives,
        "not_exhaustive_category_ids": [int(ids[min(present)])] if present and index % 10 == 0 else [],
    }


def place_outline(outline, area, size_hw, draws):
    """Put an outline into an image: its side is log-uniform from 8 px to 70 % of the image's."""
    height, width = size_hw
    u = draws.random(4)
    extent = np.exp(np.log(8) + u[:2] * np.log([width * 0.7 / 8, height * 0.7 / 8]))
    corner = u[2:] * ([width, height] - extent)
    points = np.round(outline * extent + corner, 2)
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    return {
        "segmentation": [points.ravel().tolist()],
        "bbox": np.round([*low, *size], 2).tolist(),
        "area": round(float(area * extent[0] * extent[1]), 2),
    }


def write_images(root, folders, num_files, seed=0):
    """Write ``num_files`` JPEG files into each folder below ``root`` and return paths and sizes."""
    draws = np.random.default_rng(seed)
    files = []
    for number, folder in enumerate(folder for folder in folders for _ in range(num_files)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        height, width = SIZES_HW[number % len(SIZES_HW)]
        coarse = Image.fromarray(draws.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (smooth + draws.normal(0, 8, (height, width, 1)).astype(np.int16)).clip(0, 255)
        name = f"{folder}/{number + 1:012d}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(root / name, quality=92)
        files.append((name, (height, width)))
    return files


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--train-images", type=int, default=LVIS_IMAGES)
    parser.add_argument("--val-images", type=int, default=0)
    parser.add_argument("--files", type=int, default=10, help="image files in each folder")
    parser.add_argument("--categories", default=None, help="JSON list of LVIS categories with counts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)
    categories = read_categories(arguments.categories)
    files = write_images(arguments.root, ("train2017", "val2017"), arguments.files, arguments.seed)
    splits = {
        "train": (arguments.train_images, [file for file in files if file[0].startswith("train2017")]),
        "val": (arguments.val_images, files[::-1]),  # those of LVIS val lie in both folders
    }
    for number, (split, (num_images, own)) in enumerate(splits.items()):
        if num_images:
            path = arguments.root / f"lvis_v1_{split}.json"
            settings = {
                "categories": categories,
                "files": own,
                "seed": arguments.seed + number,
                "root": arguments.root,
            }
            count = write_annotations(path, num_images=num_images, **settings)
            print(f"{path}: {num_images} images, {count} annotations, {path.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
