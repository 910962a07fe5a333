"""A dataset is refused before anything is trained on it, by what a user can see in its files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mflight.data.dataset_check import check_dataset
from mflight.data.lvis import LVISDataset
from mflight.evaluation.results import score_results

CASES = Path(os.environ.get("MFLIGHT_CASES", Path(__file__).resolve().parents[4] / "shared" / "cases"))
REFUSED = {
    "names_permuted": "category 1 is 'bolt' and 'ring'",
    "rle_crop_runs": "annotation 1 of image 1, its runs cover 576 px and not 96 x 128",
    "rle_too_long": "annotation 1 of image 1, its runs cover 24288 px and not 96 x 128",
    "dup_image_ids": "image ids are listed twice: 1",
    "same_file_twice": r"two ids: images/train_001\.jpg as 1 and 5",
    "ids_beyond_int64": "64 bits: 20231005123045678901",
    "huge_polygon": r"annotation 1 of image 1, 3\.5e\+08 px in 128 x 96 px",
}
USED = (
    "control",
    "points_pairs",
    "area_zero",
    "iscrowd_bool",
    "coco_url_null",
    "coco_url_other",
    "ids_from_zero",
    "bmp",
    "exif3",
)


def places(folder):
    return {
        "train_annotations": folder / "train.json",
        "train_images": folder,
        "val_annotations": folder / "val.json",
        "val_images": folder,
    }


@pytest.fixture
def dataset(tmp_path):
    """Twenty images of a square each, of two classes in turn; both splits."""
    square = [[4, 4, 12, 4, 12, 12, 4, 12]]
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(1, 21):
            name = f"{split}_{number}.jpg"
            noise = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name)
            images.append({"id": number, "height": 24, "width": 32, "file_name": name})
            entry = {"id": number, "image_id": number, "category_id": number % 2 + 1, "segmentation": square}
            annotations.append({**entry, "bbox": [4, 4, 8, 8], "area": 64, "iscrowd": 0})
        categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "tray"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


def change(folder, split, edit):
    path = folder / f"{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_sound_dataset_passes(dataset):
    check_dataset(**places(dataset), num_classes=2)
    with pytest.raises(ValueError, match=r"data.num_classes must be the 2 of .*train.json, got 3"):
        check_dataset(**places(dataset), num_classes=3)


@pytest.mark.parametrize(
    ("split", "edit", "message"),
    [
        ("val", lambda c: c["categories"][0].update(name="plate"), "category 1 is 'cup' and 'plate'"),
        ("val", lambda c: c["categories"].append({"id": 9, "name": "hat"}), r"\[9\] are in one of them only"),
        (
            "train",
            lambda c: [a.update(segmentation=[]) for a in c["annotations"][:2]],
            r"train.json: 2 of 20 instances are left out: 2 without an outline; data.max_left_out=0.1",
        ),
        (
            "val",
            lambda c: [a.update(segmentation=[]) for a in c["annotations"]],
            r"val.json: 20 of 20 instances .* all of 'cup', 'tray'",
        ),
        ("val", lambda c: c.update(annotations=[]), "val.json: it lists no annotations"),
        (
            "train",
            lambda c: [a.update(bbox=[4, 4, 12, 19]) for a in c["annotations"]],
            "20 of 20 instances are left out: 20 with a box elsewhere",
        ),
        (
            "train",
            lambda c: c["images"][3].update(file_name="gone.jpg"),
            r"image files are missing in .*gone.jpg",
        ),
        (
            "train",
            lambda c: [i.update(height=32, width=24) for i in c["images"]],
            r"20 of 20 images looked at are no use, the first: .*train_1.jpg is \(24, 32\) \(H, W\)",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(dataset, split, edit, message):
    change(dataset, split, edit)
    with pytest.raises(ValueError, match=message):
        check_dataset(**places(dataset))


def test_a_setting_allows_to_leave_out(dataset, caplog):
    change(dataset, "train", lambda c: [a.update(segmentation=[]) for a in c["annotations"]])
    check_dataset(**places(dataset), max_left_out=2)
    change(
        dataset,
        "train",
        lambda c: [a.update(segmentation=[[4, 4, 9, 4, 9, 9]]) for a in c["annotations"][1:]],
    )
    check_dataset(**places(dataset))
    LVISDataset(annotation_file=dataset / "train.json", image_root=dataset)
    assert "train.json: 1 of 20 instances is left out: 1 without an outline" in caplog.text


def test_a_truncated_image_costs_that_image_and_a_tenth_of_them_the_run(dataset, caplog):
    whole = (dataset / "train_5.jpg").read_bytes()
    (dataset / "train_5.jpg").write_bytes(whole[: len(whole) // 2])
    check_dataset(**places(dataset))
    torch.manual_seed(0)
    images = LVISDataset(annotation_file=dataset / "train.json", image_root=dataset, replaces_damaged=True)
    ids = [images[index][1]["image_id"] for index in range(20)]
    assert 5 not in ids and ids[:4] == [1, 2, 3, 4]
    assert "train_5.jpg cannot be decoded" in caplog.text and "(1 of 20 images so far)" in caplog.text
    scored = LVISDataset(annotation_file=dataset / "train.json", image_root=dataset)
    assert scored[4] is None and scored[5][1]["image_id"] == 6
    (dataset / "train_9.jpg").unlink()
    with pytest.raises(ValueError, match=r"2 of 20 images are no use, the last: image 9 has no file"):
        images[8]


@pytest.mark.parametrize("case", REFUSED)
def test_a_case_is_refused_with_its_place(case):
    if not (CASES / "data" / case).is_dir():
        pytest.skip("set MFLIGHT_CASES to the folder of small inputs")
    with pytest.raises(ValueError, match=REFUSED[case]):
        check_dataset(**places(CASES / "data" / case))


@pytest.mark.parametrize("case", USED)
def test_a_case_is_used_and_its_perfect_boxes_score_100(case):
    folder = CASES / "data" / case
    if not folder.is_dir():
        pytest.skip("set MFLIGHT_CASES to the folder of small inputs")
    check_dataset(**places(folder))
    truth = json.loads((folder / "val.json").read_text())
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [{**{key: a[key] for key in keys}, "score": 0.9} for a in truth["annotations"]]
    figures = score_results(ground_truth=folder / "val.json", results=results, num_workers=0).compute()
    assert figures["bbox"]["AP"] == pytest.approx(100) and figures["segm"]["AP"] == pytest.approx(100)


def test_labels_lie_on_their_objects_whatever_the_orientation(dataset):
    """Each image is stored upside down, with the EXIF orientation that says so."""
    bright = np.zeros((24, 32, 3), dtype=np.uint8)
    bright[4:12, 4:12] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    for number in range(1, 21):
        Image.fromarray(bright[::-1, ::-1].copy()).save(
            dataset / f"train_{number}.jpg", exif=exif, quality=95
        )
    image, target = LVISDataset(annotation_file=dataset / "train.json", image_root=dataset)[0]
    assert image[0][target["masks"][0] == 1].float().mean() > 240
    assert image[0][target["masks"][0] == 0].float().mean() < 15


def test_the_cache_gives_the_same_verdict(dataset, tmp_path):
    change(dataset, "train", lambda c: [a.update(segmentation=None) for a in c["annotations"][::2]])
    for _ in range(2):
        with pytest.raises(ValueError, match="10 of 20 instances are left out"):
            check_dataset(**places(dataset), cache_dir=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
