"""Data of other formats than MiniLVIS's: what benchmarks make, and what a user of COCO tools brings."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mflight.data.annotation_check import check_annotations
from mflight.data.image_check import check_images
from tests.run.conftest import NO_SYNTHESIS, SMALL

ROOT = Path(__file__).parents[2]


def test_made_data_is_sound(tmp_path):
    sizes = "--train-images 120 --val-images 10 --files 3".split()
    command = [sys.executable, "benchmarks/lvis_format_data.py", "--root", str(tmp_path), *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for split, num_images in (("train", 120), ("val", 10)):
        report = check_annotations(tmp_path / f"lvis_v1_{split}.json")
        assert report.problems.lines() == []
        assert (report.counts["images"], report.counts["categories"]) == (num_images, 1203)
        assert not any("image_count" in line for line in report.notes.lines() if "frequencies" not in line)
        assert check_images(tmp_path, report.images, num_decoded=None).lines() == []
    for name in ("train2017", "val2017"):
        assert len({path.stat().st_ino for path in (tmp_path / name).iterdir()}) == 3


def finish(jobs, name, annotations, images, *overrides):
    """Train the small detector on ``train.json`` and ``val.json`` of a folder."""
    return jobs.finish(
        name,
        *SMALL,
        *NO_SYNTHESIS,
        "data=lvis_format",
        "data/transform=mini",
        "data.num_workers=0",
        "data.batch_size=4",
        "data.val_batch_size=4",
        f"data.cache_dir={annotations}/cache",
        *(f"data.{split}_annotations={annotations}/{split}.json" for split in ("train", "val")),
        *(f"data.{split}_images={images}" for split in ("train", "val")),
        *overrides,
    )


@pytest.mark.slow
def test_a_coco_format_dataset_of_ones_own_trains(jobs, baseline_job, tmp_path):
    """Neither frequencies nor counts, nor areas, nor negatives: what COCO tools write, with a crowd in it."""
    assert baseline_job.process.returncode == 0, baseline_job.output
    drawn = jobs.folder / "data" / "minilvis"
    rare = {}
    for split in ("train", "val"):
        content = json.loads((drawn / f"{split}.json").read_text())
        rare[split] = [c["id"] for c in content["categories"] if c["frequency"] == "r"]
        content["categories"] = [{key: c[key] for key in ("id", "name")} for c in content["categories"]]
        content["images"] = [
            {key: image[key] for key in ("id", "file_name", "height", "width")} for image in content["images"]
        ]
        for annotation in content["annotations"]:
            del annotation["area"]
            annotation["iscrowd"] = int(annotation["id"] % 50 == 0)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    job = finish(jobs, "coco_format", tmp_path, drawn, "trainer.max_steps=2")
    assert job.process.returncode == 0, job.output
    with (job.run_dir / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["category_id"]) for row in rows if row["frequency"] == "rare"] == rare["val"]
    assert job.results["val/segm/APr"] >= 0  # -1 would say that no class is rare


@pytest.mark.slow
def test_a_damaged_picture_costs_its_image_and_a_tenth_of_them_the_run(jobs, baseline_job, tmp_path):
    """Twenty JPEG files in each split: eight steps of four see each of them."""
    assert baseline_job.process.returncode == 0, baseline_job.output
    drawn = jobs.folder / "data" / "minilvis"
    files = {}
    for split in ("train", "val"):
        content = json.loads((drawn / f"{split}.json").read_text())
        content["images"] = content["images"][:20]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        for image in content["images"]:
            name = f"{split}_{image['id']}.jpg"
            Image.open(drawn / image["file_name"]).convert("RGB").save(tmp_path / name)
            image |= {"file_name": name, "coco_url": None}
        files[split] = [tmp_path / image["file_name"] for image in content["images"]]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        cut_short(files[split][3])
    job = finish(jobs, "damaged", tmp_path, tmp_path)
    assert job.process.returncode == 0 and job.results["steps"] == 8, job.output
    for split, instead in (("train", "another one is trained on"), ("val", "it is not scored")):
        (line,) = [line for line in job.output.splitlines() if files[split][3].name in line]
        assert re.search(rf"{files[split][3].name} cannot be decoded: .*; {instead} \(1 of 20 images", line)
    with (job.run_dir / "per_class.csv").open() as file:
        assert sum(int(row["num_images"]) for row in csv.DictReader(file)) > 0
    cut_short(files["val"][5])
    job = finish(jobs, "damaged_more", tmp_path, tmp_path)
    assert job.process.returncode == 2 and "val.json: 2 of 20 images looked at are no use" in job.output, (
        job.output
    )


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
