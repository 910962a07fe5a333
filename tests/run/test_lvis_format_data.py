"""Data of other formats than MiniLVIS's: what benchmarks make, and what a user of COCO tools brings."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    places = [f"data.{split}_{key}" for split in ("train", "val") for key in ("annotations", "images")]
    files = [tmp_path / "train.json", drawn, tmp_path / "val.json", drawn]
    job = jobs.finish(
        "coco_format",
        *SMALL,
        *NO_SYNTHESIS,
        "data=lvis_format",
        "data/transform=mini",
        "data.num_workers=0",
        "data.batch_size=4",
        f"data.root={tmp_path}",
        *(f"{key}={file}" for key, file in zip(places, files, strict=True)),
        "trainer.max_steps=2",
    )
    assert job.process.returncode == 0, job.output
    with (job.run_dir / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["category_id"]) for row in rows if row["frequency"] == "rare"] == rare["val"]
    assert job.results["val/segm/APr"] >= 0  # -1 would say that no class is rare
