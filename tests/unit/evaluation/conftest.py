"""Random LVIS-format ground truth and results with every rule's odd case in it."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

HEIGHT_PX, WIDTH_PX = 120, 160


@pytest.fixture(scope="session")
def world():
    """The functions of this file; a fixture, so that no test imports a test file."""
    return SimpleNamespace(
        make_ground_truth=make_ground_truth,
        make_results=make_results,
        run_lvis_package=run_lvis_package,
        run_coco_package=run_coco_package,
    )


def make_ground_truth(seed, num_images=30, num_categories=12):
    draws = np.random.default_rng(seed)
    category_ids = sorted(draws.choice(np.arange(3, 400), num_categories, replace=False).tolist())
    image_ids = draws.choice(np.arange(10, 9000), num_images, replace=False).tolist()
    categories = [
        {"id": c, "name": f"thing_{c}", "frequency": "rcf"[i % 3]} for i, c in enumerate(category_ids)
    ]
    draws.shuffle(categories)
    images, annotations = [], []
    for number, image_id in enumerate(image_ids):
        present = [] if number % 7 == 0 else draws.choice(category_ids[:-1], 3, replace=False).tolist()
        absent = [c for c in category_ids if c not in present]
        negative = draws.choice(absent, 3, replace=False).tolist()
        images.append(
            {
                "id": image_id,
                "height": HEIGHT_PX,
                "width": WIDTH_PX,
                "neg_category_ids": negative,
                "not_exhaustive_category_ids": present[:1] + (negative[:1] if number % 5 == 0 else []),
            }
        )
        for category_id in present:
            for _ in range(int(draws.integers(1, 6))):
                annotations.append(_annotation(draws, len(annotations) + 7, image_id, category_id))
    draws.shuffle(annotations)
    for order, annotation in enumerate(annotations):
        annotation["id"] = 1000 + 3 * order
    return {"images": images, "categories": categories, "annotations": annotations}


def _annotation(draws, annotation_id, image_id, category_id):
    side = draws.choice([8, 30, 60, 110])
    w, h = draws.uniform(0.6, 1.0, 2) * side
    x, y = draws.uniform(0, [WIDTH_PX - w, HEIGHT_PX - h])
    first = [x, y, x + w / 2, y, x + w / 2, y + h, x, y + h]
    second = [x + 0.6 * w, y, x + w, y, x + w, y + h, x + 0.6 * w, y + 0.7 * h]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(v) for v in (x, y, w, h)],
        "area": float(w * h * draws.uniform(0.7, 1.0)) if draws.random() > 0.02 else 0.0,
        "segmentation": [[float(v) for v in part] for part in (first, second)[: int(draws.integers(1, 3))]],
    }


def make_results(ground_truth, seed, per_image=40, ties=False):
    draws = np.random.default_rng(seed)
    category_ids = [category["id"] for category in ground_truth["categories"]]
    by_image = {image["id"]: [] for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    results = []
    for number, (image_id, annotations) in enumerate(by_image.items()):
        if number % 11 == 3:
            continue
        for _ in range(per_image):
            source = draws.choice(annotations) if annotations and draws.random() < 0.7 else None
            source = source or _annotation(draws, 0, image_id, int(draws.choice(category_ids)))
            category_id = source["category_id"] if draws.random() < 0.9 else int(draws.choice(category_ids))
            shift = draws.normal(0, 0.06, 2) * source["bbox"][2:] if draws.random() < 0.8 else np.zeros(2)
            results.append(_result(source, image_id, category_id, shift, draws.random(), ties))
    draws.shuffle(results)
    return results


def _result(source, image_id, category_id, shift, score, ties):
    parts = [(np.array(part).reshape(-1, 2) + shift).ravel().tolist() for part in source["segmentation"]]
    rle = coco_mask.merge(coco_mask.frPyObjects(parts, HEIGHT_PX, WIDTH_PX))
    x, y, w, h = source["bbox"]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": round(score, 1) if ties else score,
        "bbox": [float(x + shift[0]), float(y + shift[1]), w, h],
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def run_coco_package(ground_truth, results, iou_type):
    """Mean AP and AR in [0, 1] of pycocotools, over all areas and for small, medium and large."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    coco.dataset = copy.deepcopy(ground_truth)
    coco.createIndex()
    scorer = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)
    scorer.params.maxDets = [300]
    scorer.evaluate()
    scorer.accumulate()
    figures = {}
    for area, letter in enumerate(["", "s", "m", "l"]):
        for name, values in (("AP", scorer.eval["precision"]), ("AR", scorer.eval["recall"])):
            of_area = values[..., area, 0]
            figures[name + letter] = of_area[of_area > -1].mean()
    return figures


def run_lvis_package(ground_truth, results, iou_type):
    """Figures in [0, 1] and per-class AP of the lvis package, its ``np.float`` supplied."""
    import lvis.eval
    from lvis import LVIS, LVISEval, LVISResults

    class Numpy:
        float = float

        def __getattr__(self, name):
            return getattr(np, name)

    reader = LVIS.__new__(LVIS)
    reader.logger = logging.getLogger("lvis")
    reader.dataset = copy.deepcopy(ground_truth)
    reader._create_index()
    plain, lvis.eval.np = lvis.eval.np, Numpy()
    try:
        evaluation = LVISEval(reader, LVISResults(reader, copy.deepcopy(results)), iou_type)
        evaluation.run()
    finally:
        lvis.eval.np = plain
    figures = {name.removesuffix("@300"): value for name, value in evaluation.results.items()}
    precision = evaluation.eval["precision"][:, :, :, 0]
    per_class = np.array(
        [own[own > -1].mean() if (own > -1).any() else -1 for own in precision.transpose(2, 0, 1)]
    )
    return figures, per_class
