"""The maker of LVIS-format data for benchmarks: sound by our own check, with the counts it promises."""

import subprocess
import sys
from pathlib import Path

from mflight.data.annotation_check import check_annotations
from mflight.data.image_check import check_images

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
        images = list(report.images.values())
        assert check_images(tmp_path, images, num_decoded=None).lines() == []
    assert {len(list((tmp_path / name).iterdir())) for name in ("train2017", "val2017")} == {3}
