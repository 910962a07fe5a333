import copy
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mflight.data.categories import Category
from mflight.evaluation import lvis_ap
from mflight.evaluation.ground_truth import GroundTruth
from mflight.evaluation.lvis_ap import LVISEvaluator
from mflight.evaluation.results import score_results

NAMES = {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR", "ARs", "ARm", "ARl"}


def assert_equal_to_lvis(world, ground_truth, results, iou_types=("bbox", "segm"), evaluator=None):
    evaluator = evaluator or score_results(ground_truth=ground_truth, results=results, num_workers=0)
    figures, rows = evaluator.compute(), evaluator.per_class()
    assert tuple(figures) == iou_types
    for iou_type in iou_types:
        expected, expected_per_class = world.run_lvis_package(ground_truth, results, iou_type)
        assert set(figures[iou_type]) == NAMES == set(expected)
        for name, value in expected.items():
            ours = figures[iou_type][name]
            assert (ours / 100 if value != -1 else ours) == pytest.approx(value, abs=1e-6), (iou_type, name)
        ours = np.array([row[f"{iou_type}/AP"] for row in rows])
        np.testing.assert_allclose(np.where(ours == -1, -1, ours / 100), expected_per_class, atol=1e-6)
    return figures


def feed(evaluator, results, image_ids=None):
    by_image = {}
    for result in results:
        by_image.setdefault(result["image_id"], []).append(result)
    for image_id in by_image if image_ids is None else image_ids:
        own = by_image.get(image_id, [])
        boxes = np.array([result["bbox"] for result in own]).reshape(-1, 4)
        evaluator.update(
            image_id=image_id,
            boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            scores=[result["score"] for result in own],
            category_ids=[result["category_id"] for result in own],
            rles=[result["segmentation"] for result in own],
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_figures_equal_the_lvis_package(world, seed, ties):
    ground_truth = world.make_ground_truth(seed)
    figures = assert_equal_to_lvis(
        world, ground_truth, world.make_results(ground_truth, seed + 100, ties=ties)
    )
    assert 5 < figures["segm"]["AP"] < 95


@pytest.mark.parametrize("ties", [False, True])
def test_more_than_300_detections_an_image_equal_the_lvis_package(world, ties):
    ground_truth = world.make_ground_truth(7, num_images=6)
    results = world.make_results(ground_truth, 8, per_image=450, ties=ties)
    assert_equal_to_lvis(world, ground_truth, results)


def test_all_detections_in_one_crowded_class_equal_the_lvis_package(world):
    ground_truth = world.make_ground_truth(9, num_images=8)
    results = world.make_results(ground_truth, 10, per_image=120, ties=True)
    category_id = ground_truth["annotations"][0]["category_id"]
    for entry in (*ground_truth["annotations"], *results):
        entry["category_id"] = category_id
    assert_equal_to_lvis(world, ground_truth, results)


def test_masks_alone_use_the_area_of_the_mask(world):
    ground_truth = world.make_ground_truth(11)
    results = world.make_results(ground_truth, 12)
    with_boxes = score_results(ground_truth=ground_truth, results=results).compute()["segm"]
    for result in results:
        del result["bbox"]
    alone = assert_equal_to_lvis(world, ground_truth, results, iou_types=("segm",))["segm"]
    assert alone["AP"] == with_boxes["AP"]
    assert alone["APm"] != with_boxes["APm"]


def test_boxes_alone_are_scored_as_boxes(world):
    ground_truth = world.make_ground_truth(13)
    results = world.make_results(ground_truth, 14)
    for result in results:
        del result["segmentation"]
    assert_equal_to_lvis(world, ground_truth, results, iou_types=("bbox",))


def test_ignored_instances_equal_the_lvis_package(world):
    ground_truth = world.make_ground_truth(15)
    for annotation in ground_truth["annotations"][::4]:
        annotation["ignore"] = 1
    assert_equal_to_lvis(world, ground_truth, world.make_results(ground_truth, 16, ties=True))


def test_annotation_id_zero_counts_like_any_other(world):
    """The lvis package reads it as "no match", so its figures are those of the file with another id."""
    ground_truth = world.make_ground_truth(15)
    ground_truth["annotations"][1]["id"] = 7
    results = world.make_results(ground_truth, 16, ties=True)
    expected = score_results(ground_truth=ground_truth, results=results).compute()
    ground_truth["annotations"][1]["id"] = 0
    assert score_results(ground_truth=ground_truth, results=results).compute() == expected
    assert world.run_lvis_package(ground_truth, results, "segm")[0]["AP"] * 100 < expected["segm"]["AP"]


def test_only_images_without_annotations_give_minus_one(world):
    ground_truth = world.make_ground_truth(17)
    results = world.make_results(ground_truth, 18)
    ground_truth["annotations"] = []
    figures = assert_equal_to_lvis(world, ground_truth, results)
    assert set(figures["bbox"].values()) == {-1.0}


def test_no_detection_at_all_gives_zero(world):
    figures = score_results(ground_truth=world.make_ground_truth(19), results=[]).compute()
    assert figures["segm"]["AP"] == figures["bbox"]["AR"] == 0.0


def test_update_per_image_equals_the_lvis_package_and_leaves_its_arguments(world):
    ground_truth = world.make_ground_truth(20)
    results = world.make_results(ground_truth, 21, ties=True)
    kept = copy.deepcopy((ground_truth, results))
    evaluator = LVISEvaluator(ground_truth=ground_truth)
    feed(evaluator, results)
    assert_equal_to_lvis(world, ground_truth, results, evaluator=evaluator)
    assert (ground_truth, results) == kept


def test_worker_processes_change_nothing(world):
    ground_truth = world.make_ground_truth(22)
    results = world.make_results(ground_truth, 23)
    alone = score_results(ground_truth=ground_truth, results=results, num_workers=0)
    shared = score_results(ground_truth=ground_truth, results=results, num_workers=1)
    assert alone.compute() == shared.compute()


def test_merged_ranks_equal_one_rank_with_images_that_two_ranks_saw(world):
    ground_truth = world.make_ground_truth(24)
    results = world.make_results(ground_truth, 25, ties=True)
    image_ids = [image["id"] for image in ground_truth["images"]]
    one = LVISEvaluator(ground_truth=ground_truth)
    feed(one, results)
    ranks = [LVISEvaluator(ground_truth=ground_truth) for _ in range(3)]
    for number, rank in enumerate(ranks):
        feed(rank, results, [*image_ids[number::3], image_ids[(number + 1) % 3]])
    states = [pickle.loads(pickle.dumps(rank.state())) for rank in ranks]
    for rank in ranks:
        rank.merge(states)
        assert rank.compute() == one.compute()
        assert rank.per_class() == one.per_class()
        assert rank.updated_image_ids == sorted(image_ids)


def test_restricted_to_images_equals_the_lvis_package_on_those_images(world):
    ground_truth = world.make_ground_truth(26)
    results = world.make_results(ground_truth, 27)
    evaluator = score_results(ground_truth=ground_truth, results=results)
    chosen = [image["id"] for image in ground_truth["images"][:12]]
    few = {
        "images": ground_truth["images"][:12],
        "categories": ground_truth["categories"],
        "annotations": [a for a in ground_truth["annotations"] if a["image_id"] in chosen],
    }
    expected, _ = world.run_lvis_package(few, [r for r in results if r["image_id"] in chosen], "segm")
    assert evaluator.compute(image_ids=chosen)["segm"]["AP"] == pytest.approx(100 * expected["AP"], abs=1e-4)
    assert evaluator.compute()["segm"]["AP"] != evaluator.compute(image_ids=chosen)["segm"]["AP"]


def test_masks_that_are_not_needed_change_nothing(world):
    ground_truth = world.make_ground_truth(30)
    results = world.make_results(ground_truth, 31, ties=True)
    evaluator = LVISEvaluator(ground_truth=ground_truth)
    cells = {(a["image_id"], a["category_id"]) for a in ground_truth["annotations"] if a["area"] > 0}
    without = []
    for result in results:
        (needed,) = evaluator.needs_masks(result["image_id"], [result["category_id"]])
        assert needed == ((result["image_id"], result["category_id"]) in cells)
        without.append(result if needed else {**result, "segmentation": None})
    assert 0.1 < np.mean([result["segmentation"] is None for result in without]) < 0.9
    feed(evaluator, without)
    assert_equal_to_lvis(world, ground_truth, results, evaluator=evaluator)
    boxes_only = LVISEvaluator(ground_truth=ground_truth, iou_types=("bbox",))
    assert not boxes_only.needs_masks(results[0]["image_id"], [results[0]["category_id"]]).any()


def test_reset_forgets_detections(world):
    ground_truth = world.make_ground_truth(28)
    results = world.make_results(ground_truth, 29)
    evaluator = LVISEvaluator(ground_truth=ground_truth)
    feed(evaluator, results)
    first = evaluator.compute()
    evaluator.reset()
    assert evaluator.compute()["segm"]["AP"] == 0.0
    feed(evaluator, results)
    assert evaluator.compute() == first


def tiny_ground_truth():
    """One image: category 5 has two 40 x 40 squares, 9 is known to be absent, nothing is known of 7."""
    squares = [[0, 0, 40, 40], [50, 50, 40, 40]]
    return {
        "images": [
            {
                "id": 3,
                "height": 100,
                "width": 100,
                "neg_category_ids": [9, 1 << 70],
                "not_exhaustive_category_ids": [],
            }
        ],
        "categories": [
            {"id": 5, "name": "5", "frequency": "r"},
            {"id": 7, "name": "7", "frequency": "c", "image_count": 40},
            {"id": 9, "name": "9", "frequency": "f"},
        ],
        "annotations": [
            {
                "id": i,
                "image_id": 3,
                "category_id": 5,
                "bbox": box,
                "area": 1600.0,
                "segmentation": rectangle(box),
            }
            for i, box in enumerate(squares, start=1)
        ],
    }


def rectangle(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def test_hand_worked_case():
    """Right at 0.9, wrong at 0.8, right at 0.7: precision 1 at 51 recall levels, 2/3 at 50."""
    evaluator = LVISEvaluator(ground_truth=tiny_ground_truth(), iou_types=("bbox",))
    evaluator.update(
        image_id=3,
        boxes_xyxy=np.array(
            [[0, 0, 40, 40], [0, 60, 40, 100], [50, 50, 90, 90], [0, 0, 9, 9], [1, 1, 9, 9.0]]
        ),
        scores=np.array([0.9, 0.8, 0.7, 0.95, 0.95]),
        category_ids=np.array([5, 5, 5, 7, 9]),
    )
    figures = evaluator.compute()["bbox"]
    expected = 100 * (51 + 50 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP75", "APm", "APr"):
        assert figures[name] == pytest.approx(expected, abs=1e-9)
    assert figures["AR"] == figures["ARm"] == 100.0
    assert figures["APc"] == figures["APf"] == figures["APs"] == figures["ARl"] == -1.0
    rows = evaluator.per_class()
    assert [(row["category_id"], row["frequency"], row["num_instances"]) for row in rows] == [
        (5, "rare", 2),
        (7, "common", 0),
        (9, "frequent", 0),
    ]
    assert rows[0]["bbox/AP"] == pytest.approx(expected, abs=1e-9)
    assert [(row["num_images"], row["image_count"]) for row in rows] == [(1, None), (0, 40), (0, None)]


def test_of_two_instances_that_overlap_alike_the_later_one_is_taken():
    """The first detection has an IoU of 0.6 with both; the second one lies on the first instance alone."""
    ground_truth = tiny_ground_truth()
    for annotation, x in zip(ground_truth["annotations"], (0, 20), strict=True):
        annotation["bbox"] = [x, 0, 40, 40]
    results = [
        {"image_id": 3, "category_id": 5, "score": score, "bbox": [x, 0, 40, 40]}
        for score, x in ((0.9, 10), (0.8, 0))
    ]
    figures = score_results(ground_truth=ground_truth, results=results).compute()["bbox"]
    assert figures["AP50"] == pytest.approx(100.0)


def test_an_instance_at_the_bound_of_two_sizes_counts_in_both():
    ground_truth = tiny_ground_truth()
    for annotation in ground_truth["annotations"]:
        annotation |= {"bbox": [0, 0, 32, 32], "area": 1024.0}
    results = [{"image_id": 3, "category_id": 5, "score": 0.9, "bbox": [0, 0, 32, 32]}]
    figures = score_results(ground_truth=ground_truth, results=results).compute()["bbox"]
    assert figures["APs"] == figures["APm"] > 0 and figures["APl"] == -1.0


def test_not_exhaustive_class_forgives_the_wrong_detection():
    ground_truth = tiny_ground_truth()
    ground_truth["images"][0]["not_exhaustive_category_ids"] = [5]
    results = [
        {"image_id": 3, "category_id": 5, "score": s, "bbox": box}
        for s, box in ((0.9, [0, 0, 40, 40]), (0.8, [0, 60, 40, 40]), (0.7, [50, 50, 40, 40]))
    ]
    assert score_results(ground_truth=ground_truth, results=results).compute()["bbox"]["AP"] == pytest.approx(
        100.0
    )


def test_coco_format_without_negatives_counts_every_class():
    ground_truth = tiny_ground_truth()
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        del ground_truth["images"][0][key]
    ground_truth["annotations"][1]["category_id"] = 7
    results = [
        {"image_id": 3, "category_id": c, "score": s, "bbox": [0, 0, 40, 40]} for c, s in ((5, 0.9), (7, 0.8))
    ]
    figures = score_results(ground_truth=ground_truth, results=results).compute()["bbox"]
    assert (figures["APr"], figures["APc"]) == (pytest.approx(100.0), 0.0)


def test_an_image_without_negatives_among_others_counts_every_class():
    ground_truth = tiny_ground_truth()
    ground_truth["images"].append({"id": 4, "height": 100, "width": 100})
    ground_truth["annotations"].append(
        {"id": 9, "image_id": 4, "category_id": 5, "bbox": [0, 0, 40, 40], "area": 1600.0}
    )
    judged = GroundTruth.load(ground_truth).judged_cells.tolist()
    assert judged == [0, 2, 3, 4, 5]  # of image 3 the instances' class and its negative, of image 4 all three


def test_blocks_of_a_few_detections_give_the_same_figures_and_leave_no_outline(world, monkeypatch):
    ground_truth = world.make_ground_truth(28)
    results = world.make_results(ground_truth, 29, ties=True)
    whole = LVISEvaluator(ground_truth=ground_truth)
    feed(whole, results)
    monkeypatch.setattr(lvis_ap, "BLOCK_DETECTIONS", 50)
    parts = LVISEvaluator(ground_truth=ground_truth)
    feed(parts, results)
    assert len(parts._verdicts) > 5 and len(whole._verdicts) == 1
    assert sum(len(pending) for pending in parts._pending) < 50
    assert parts.compute() == whole.compute()


def test_an_instance_without_an_outline_is_never_found_by_its_mask():
    ground_truth = tiny_ground_truth()
    first = ground_truth["annotations"][0]
    ground_truth["annotations"] += [{**first, "id": number, "image_id": 4} for number in range(50, 75)]
    ground_truth["images"].append({**ground_truth["images"][0], "id": 4})
    first["segmentation"] = []
    ground_truth["annotations"][1]["segmentation"] = [[1.0, 2.0, 30.0, 40.0]]
    results = [
        {
            "image_id": 3,
            "category_id": 5,
            "score": 0.9,
            "bbox": annotation["bbox"],
            "segmentation": square_rle((100, 100)),
        }
        for annotation in ground_truth["annotations"][:2]
    ]
    evaluator = score_results(ground_truth=ground_truth, results=results)
    figures = evaluator.compute(image_ids=[3])
    assert (figures["bbox"]["AP"], figures["segm"]["AP"]) == (pytest.approx(100.0), 0.0)
    ground_truth["annotations"] = ground_truth["annotations"][:19]
    with pytest.raises(ValueError, match=r"2 of 19 annotations have no outline, annotation \d+ is the first"):
        score_results(ground_truth=ground_truth, results=results)


def outline_as_rle(outline, compressed):
    rle = coco_mask.merge(coco_mask.frPyObjects(outline, 120, 160))
    if compressed:
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    columns = np.flatnonzero(np.diff(coco_mask.decode(rle).ravel(order="F"), prepend=0, append=0) != 0)
    counts = np.diff(columns, prepend=0, append=120 * 160) if len(columns) else np.array([120 * 160])
    return {"size": rle["size"], "counts": [int(count) for count in counts]}


@pytest.mark.parametrize("seed", range(2))
def test_coco_format_with_crowds_equals_pycocotools(world, seed):
    ground_truth = world.make_ground_truth(seed + 30)
    for image in ground_truth["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    polygons = copy.deepcopy(ground_truth)
    for index, annotation in enumerate(ground_truth["annotations"]):
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotation["iscrowd"] = int(index % 4 == 0)
        if annotation["iscrowd"] or index % 5 == 1:
            outline = annotation["segmentation"]
            annotation["segmentation"] = outline_as_rle(outline, compressed=not annotation["iscrowd"])
    results = world.make_results(polygons, seed + 40)
    ours = score_results(ground_truth=ground_truth, results=results).compute()
    for iou_type in ("bbox", "segm"):
        expected = world.run_coco_package(ground_truth, results, iou_type)
        assert {name: ours[iou_type][name] / 100 for name in expected} == pytest.approx(expected, abs=1e-9)

    missing = copy.deepcopy(ground_truth)
    for annotation, other in zip(ground_truth["annotations"], missing["annotations"], strict=True):
        annotation["area"] = 0
        del other["area"]
    by_outline = score_results(ground_truth=ground_truth, results=results).compute()
    assert by_outline == score_results(ground_truth=missing, results=results).compute()
    assert by_outline["segm"]["AP"] == pytest.approx(ours["segm"]["AP"])  # the size classes differ
    for annotation in ground_truth["annotations"]:
        del annotation["iscrowd"]
    assert score_results(ground_truth=ground_truth, results=results).compute() != ours


def test_missing_frequencies_come_from_the_training_set():
    ground_truth = tiny_ground_truth()
    ground_truth["categories"] = [{"id": 5, "name": "5"}, {"id": 7, "name": "7", "frequency": "c"}]
    evaluator = LVISEvaluator(ground_truth=ground_truth, iou_types=("bbox",))
    detections = {"boxes_xyxy": [[0, 0, 40, 40]], "scores": [0.5], "category_ids": [5]}
    evaluator.update(image_id=3, **detections)
    assert evaluator.compute()["bbox"]["APr"] == -1
    evaluator.take_missing_counts_of(
        [Category(5, "5", frequency="rare", image_count=4), Category(7, "7", image_count=3000)]
    )
    figures = evaluator.compute()["bbox"]
    assert figures["APr"] == figures["AP"] > 0
    told = [(row["frequency"], row["image_count"]) for row in evaluator.per_class()]
    assert told == [("rare", 4), ("common", 3000)]


def square_rle(size):
    rle = coco_mask.frPyObjects(rectangle([0, 0, 40, 40]), *size)[0]
    return {"size": rle["size"], "counts": rle["counts"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 4}, "image id 4 is not one of the 1"),
        ({"category_ids": [6]}, "image 3: category id 6 is not one of the 3"),
        ({"scores": [0.5, 0.5]}, r"image 3 .*'scores': 2"),
        ({"scores": [float("nan")]}, "finite scores, got nan"),
        ({"rles": None}, "image 3 must have rles .* got None"),
        ({"rles": [None]}, r"image 3: rles\[0\] is None, but the image has instances of its class"),
        (
            {"rles": [square_rle((50, 60))]},
            r"rles\[0\] must have the image's size \[100, 100\], got \[50, 60\]",
        ),
    ],
)
def test_update_errors_name_value_and_place(changes, message):
    evaluator = LVISEvaluator(ground_truth=tiny_ground_truth())
    detections = {
        "image_id": 3,
        "boxes_xyxy": [[0, 0, 40, 40]],
        "scores": [0.5],
        "category_ids": [5],
        "rles": [square_rle((100, 100))],
    }
    with pytest.raises(ValueError, match=message):
        evaluator.update(**{**detections, **changes})
    evaluator.update(**detections)
    with pytest.raises(ValueError, match="image 3 comes a second time"):
        evaluator.update(**detections)


def test_merge_refuses_other_iou_types():
    boxes_only = LVISEvaluator(ground_truth=tiny_ground_truth(), iou_types=("bbox",))
    with pytest.raises(ValueError, match=r"states\[0\] must hold \['bbox', 'segm'\], it holds \['bbox'\]"):
        LVISEvaluator(ground_truth=tiny_ground_truth()).merge([boxes_only.state()])


@pytest.mark.parametrize("setting", [{"iou_types": ("mask",)}, {"iou_types": ()}, {"max_detections": 0}])
def test_constructor_refuses_bad_settings(setting):
    (key,) = setting
    with pytest.raises(ValueError, match=key):
        LVISEvaluator(ground_truth=tiny_ground_truth(), **setting)
