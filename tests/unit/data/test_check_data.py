"""The check of a dataset on files with known faults, as ``python -m mflight.check_data`` runs it."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from rich.console import Console

from mflight.check_data import check_data, print_summary

CONF = Path(__file__).resolve().parents[3] / "conf"
HEIGHT, WIDTH = 6, 8


def image(image_id, folder="train2017", **changes):
    entry = {
        "id": image_id,
        "height": HEIGHT,
        "width": WIDTH,
        "coco_url": f"http://images.cocodataset.org/{folder}/{image_id}.png",
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
    }
    return {**entry, **changes}


def annotation(annotation_id, image_id=1, category_id=1, **changes):
    polygon = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0]]
    entry = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": [1, 1, 2, 2]}
    return {**entry, "area": 2.0, "segmentation": polygon, **changes}


def category(category_id, letter="r", count=1):
    return {"id": category_id, "name": f"class_{category_id}", "frequency": letter, "image_count": count}


@pytest.fixture
def dataset(tmp_path):
    """A sound dataset; what a test changes is written by ``write``."""
    for folder, image_id in (("train2017", 1), ("train2017", 2), ("val2017", 3)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / folder / f"{image_id}.png")
    train = {
        "images": [image(1), image(2)],
        "annotations": [annotation(1), annotation(2, 2, 2)],
        "categories": [category(1), category(2)],
    }
    # images of the validation lie in both of COCO's folders
    val = {**train, "images": [image(2), image(3, "val2017")], "annotations": [annotation(7, 3, 2)]}
    return tmp_path, {"train": train, "val": val}


def check(folder, splits, *overrides):
    for split, content in splits.items():
        (folder / f"{split}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    GlobalHydra.instance().clear()
    keys = [f"data.{s}_annotations={folder}/{s}.json" for s in splits] + [
        f"data.{s}_images={folder}" for s in splits
    ]
    given = ["data=lvis_format", f"data.root={folder}", "data.batch_size=1", *keys, *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("check_data", overrides=given)
    return check_data(cfg)


def problems(summary):
    return [line for found in summary.values() for line in found["problems"]]


def test_a_sound_dataset_has_no_problem(dataset):
    summary = check(*dataset, "num_decoded=all")
    assert problems(summary) == []
    assert summary["train"]["counts"] == {"images": 2, "annotations": 2, "categories": 2}
    text = io.StringIO()
    assert print_summary(summary, Console(file=text)) == 0
    assert "train 2 images, 2 annotations, 2 categories" in text.getvalue()
    assert "2 classes in train: 2 rare, 0 common, 0 frequent" in text.getvalue()
    row = {"name": "class_1", "images": 1, "instances": 1, "frequency": "rare"}
    assert summary["train"]["classes"][0] == row


def test_faulty_annotations_are_named_and_do_not_end_the_check(dataset):
    folder, splits = dataset
    splits["train"]["annotations"] = [
        annotation(1),
        annotation(1),
        annotation(1, image_id=9),
        annotation(3, category_id=77),
        annotation(4, bbox=[6, 1, 4, 2], segmentation=[[6, 1, 10, 1, 10, 3]]),  # to x = 10 of 8
        annotation(5, bbox=[5, 1, 3.9, 2], segmentation=[[5, 1, 8, 1, 8, 3]]),  # by less than a pixel
        annotation(6, segmentation={"size": [WIDTH, HEIGHT], "counts": [48]}),
        annotation(7, bbox=[1, 2, 2, "two"]),
        annotation(8, segmentation=[]),
        annotation(9, segmentation={"size": [HEIGHT, WIDTH], "counts": [47]}),
    ]
    splits["train"]["annotations"] += [annotation(index) for index in range(10, 40)]
    found = check(folder, splits)["train"]
    assert found["problems"] == [
        "annotations are not of the format: annotations[7]: Expected `float`, got `str` - at `$.bbox[3]`",
        "annotations name an unknown image_id: 9 in annotation 1",
        "annotations name an unknown category_id: 77 in annotation 3",
        "run-length codes are of another size than their image: annotation 6 of image 1, [8, 6], the image "
        "[6, 8]",
        "run-length codes are no masks of their image: annotation 9 of image 1, its runs cover 47 px and "
        "not 6 x 8",
        "annotation ids are listed twice: 1",
    ]
    assert (
        "boxes reach out of their image and are cut: annotation 4 of image 1, [6.0, 1.0, 10.0, 3.0] "
        "(x1, y1, x2, y2) in 8 x 6 px" in found["notes"]
    )
    told = "file is used in part: 1 of 35 instances is left out: 1 without an outline"
    assert told in found["notes"]


def test_a_file_that_loses_a_tenth_or_a_whole_class_is_refused(dataset):
    folder, splits = dataset
    splits["train"]["annotations"][1] = annotation(2, 2, 2, segmentation=[])
    (line,) = problems(check(folder, splits))
    assert line == (
        "file loses too much: 1 of 2 instances is left out: 1 without an outline; all of 'class_2'; "
        "data.max_left_out=0.1 refuses that, 2 allows any"
    )
    assert problems(check(folder, splits, "data.max_left_out=2")) == []


def test_contradictions_of_the_federated_lists_are_named(dataset):
    folder, splits = dataset
    splits["train"]["images"] = [image(1, neg_category_ids=[1, 2, 50]), image(2)]
    for content in splits.values():
        content["images"][1].pop("neg_category_ids")
    summary = check(folder, splits)
    absent = "classes are listed as absent from an image that shows them: 1 in image 1"
    partly = "images list neg_category_ids in a part of the file only: image {} does not"
    assert summary["train"]["problems"] == [absent]
    assert summary["train"]["notes"] == [
        "classes that images list are unknown: 50 of image 1",
        partly.format(2),
    ]
    assert summary["val"]["notes"] == [partly.format(3)] and summary["val"]["problems"] == []


def test_missing_and_damaged_images_are_named_with_their_folder(dataset):
    folder, splits = dataset
    (folder / "val2017" / "3.png").unlink()
    (folder / "val2017").rmdir()
    whole = (folder / "train2017" / "1.png").read_bytes()
    (folder / "train2017" / "1.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (5, 4)).save(folder / "train2017" / "2.png")
    assert problems(check(folder, splits, "num_decoded=0")) == [
        f"image files are missing in {folder}/val2017, a folder that is not there: val2017/3.png (image 3)"
    ]
    lines = problems(check(folder, splits))  # a sample is opened, which is all of these
    size = f"{folder}/train2017/2.png is (4, 5) (H, W), its annotation says (6, 8)"
    assert any(
        line.startswith(f"image files cannot be trained on: {folder}/train2017/1.png cannot be decoded:")
        and line.endswith(size)
        for line in lines
    )
    assert f"image files cannot be trained on: {size}" in lines  # it belongs to both splits


def test_a_sample_of_the_images_is_looked_for(dataset):
    folder, splits = dataset
    splits["train"]["images"] = [image(i) for i in range(1, 41)]
    (line,) = check(folder, splits, "num_images=10")["train"]["problems"]
    assert re.search(r"\((8|9|10) in all\)$", line)  # 38 of 40 are missing


def test_a_file_cut_short_and_a_missing_one_are_told_together(dataset):
    folder, splits = dataset
    splits["val"] = json.dumps(splits["val"])[:-10]
    summary = check(folder, splits, f"data.train_annotations={folder}/none.json")
    assert summary["dataset"]["problems"] == [
        f"files or folders are not there: data.train_annotations={folder}/none.json"
    ]
    (line,) = summary["val"]["problems"]
    assert "no LVIS- or COCO-format annotation file" in line and f"{len(splits['val'])} bytes" in line


def test_splits_and_settings_must_agree_on_classes_and_counts(dataset):
    folder, splits = dataset
    splits["val"]["categories"] = [category(2), category(5, letter="x")]
    published = "data.published_counts={train: {images: 3}}"
    summary = check(folder, splits, published, "data.num_classes=3")
    assert summary["dataset"]["problems"] == [
        "category ids are in one of the annotation files only: 1, 5",
        "numbers of classes differ: 2 in the train annotations, data.num_classes=3, "
        "2 in the val annotations, data.num_classes=3",
    ]
    assert summary["train"]["problems"] == ["counts differ from the published: 2 images and not 3"]
    assert summary["val"]["problems"] == [
        'frequencies are none of "r", "c", "f": \'x\' of category \'class_5\''
    ]


def test_images_of_both_splits_and_a_folder_in_the_place_of_a_file_are_told(dataset):
    folder, splits = dataset
    splits["val"] = splits["train"]
    (note,) = check(folder, splits)["dataset"]["notes"]
    shown = f"2 of 2, {folder}/train2017/1.png is one"
    assert note == f"images that are scored are trained on too, so their AP says little: {shown}"
    summary = check(folder, splits, f"data.val_annotations={folder}/train2017")
    assert problems(summary) == [f"files or folders are not there: data.val_annotations={folder}/train2017"]


def test_ids_must_have_the_same_names_in_both_splits(dataset):
    folder, splits = dataset
    splits["val"]["categories"] = [{**category(1), "name": "Class 2"}, {**category(2), "name": "class_1"}]
    summary = check(folder, splits)
    assert summary["dataset"]["problems"] == [
        "ids have other names in train and val: category 1 is 'class_1' and 'Class 2'"
    ]
    splits["val"]["categories"] = [{**category(1), "name": "Class 1"}, category(2)]
    assert problems(check(folder, splits)) == []
    splits["val"]["categories"] = [{**category(1), "name": "CLASS_2"}, category(2)]
    alike = "category names are alike: 'CLASS_2' and 'class_2' of category 2"
    assert alike in check(folder, splits)["val"]["problems"]


def test_one_file_of_two_images_is_named(dataset):
    folder, splits = dataset
    splits["train"]["images"] = [image(1, file_name="a/1.png"), image(2, file_name="b/1.png")]
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "1.png")
    for entry in splits["train"]["images"]:
        del entry["coco_url"]
    (line,) = check(folder, splits)["train"]["problems"]  # by their bare name both are one file
    assert line == f"image files belong to two ids: {folder}/1.png to 1 and 2"


def test_a_coco_file_is_sound_and_what_is_computed_is_told(dataset):
    folder, splits = dataset
    for content in splits.values():
        content["categories"] = [{"id": i, "name": f"class_{i}"} for i in (1, 2)]
        content["images"] = [
            {key: value for key, value in entry.items() if not key.endswith("category_ids")}
            for entry in content["images"]
        ]
    splits["train"]["annotations"][0]["iscrowd"] = 1
    for entry in splits["val"]["categories"]:
        entry["image_count"] = 30  # of the training images, as LVIS's
    (line,) = problems(check(folder, splits))
    assert "CVAT marks each mask so that was drawn: set it to 0 there); all of 'class_1'; data.max_" in line
    summary = check(folder, splits, "data.max_left_out=2")
    assert problems(summary) == []
    assert summary["train"]["notes"] == [
        "file is used in part: 1 of 2 instances is left out: 1 marked as crowds (iscrowd=1; CVAT marks each "
        "mask so that was drawn: set it to 0 there)",
        "categories have no frequency, it is that of their images here: class_1, class_2",
        "classes have no instance to train on (take them out, or synthesis may draw them): class_1",
        "file without neg_category_ids, its images are taken as labelled exhaustively: 2 images",
    ]
    assert summary["val"]["notes"] == [summary["train"]["notes"][-1]]


def test_faulty_numbers_are_refused(dataset):
    with pytest.raises(ValueError, match=r"whole number >= 0 or all, got 'some'"):
        check(*dataset, "num_images=some")


def test_the_command_ends_with_2_and_writes_what_it_found(dataset):
    folder, splits = dataset
    for split, content in splits.items():
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(content))
    (folder / "val2017" / "3.png").unlink()
    output = folder / "found.json"
    settings = [f"data.root={folder}", "data.num_classes=2", "data.published_counts=null", f"output={output}"]
    command = [sys.executable, "-m", "mflight.check_data", "data=lvis_v1", *settings]
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "1 kinds of problems. LVIS and its images: https://www.lvisdataset.org/dataset" in done.stdout
    (line,) = json.loads(output.read_text())["val"]["problems"]
    assert line == f"image files are missing in {folder}/val2017: val2017/3.png (image 3)"
    assert line in done.stdout
