"""``python -m mflight.evaluate`` on the checkpoint of a real run and on the masks of a pool."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.detection.tiny_sam import save_tiny_sam
from tests.unit.synthesis.small_pool import fill_pool

pytestmark = pytest.mark.slow

NUM_IMAGES = 8  # that the small runs validate on: 2 batches of 4


def evaluate(jobs, *overrides):
    command = [
        sys.executable,
        "-m",
        "mflight.evaluate",
        *overrides,
        "output=out.json",
        "per_class=classes.csv",
    ]
    environment = {**jobs.environment, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, cwd=jobs.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with (jobs.folder / "classes.csv").open(newline="") as file:
        return json.loads((jobs.folder / "out.json").read_text()), list(csv.DictReader(file)), done.stdout


def test_a_checkpoint_scores_as_its_run_did_and_over_two_ranks_as_over_one(jobs, baseline_job):
    assert baseline_job.process.returncode == 0, baseline_job.output
    run_dir, data = baseline_job.run_dir, jobs.folder / "data" / "minilvis"
    results = baseline_job.results
    last = run_dir / "checkpoints" / "last.ckpt"
    figures, rows, printed = evaluate(jobs, f"checkpoint={last}")
    assert len(rows) == 24 and sum(int(row["num_images"]) for row in rows) > 0
    for iou_type in ("bbox", "segm"):
        for name, value in figures[iou_type].items():
            assert value == pytest.approx(results[f"val/{iou_type}/{name}"], abs=1e-5)
    assert results["val/bbox/AR"] > 0 and f"{figures['bbox']['AR']:.2f}" in printed

    corrected, _, _ = evaluate(jobs, f"checkpoint={last}", "prior_tau=1.0")
    assert corrected["bbox"] != figures["bbox"] and corrected["bbox"]["AR"] > 0

    val = json.loads((data / "val.json").read_text())
    val["images"] = val["images"][:NUM_IMAGES]
    kept = {image["id"] for image in val["images"]}
    val["annotations"] = [a for a in val["annotations"] if a["image_id"] in kept]
    (jobs.folder / "few.json").write_text(json.dumps(val))
    few = f'overrides=["data.val_annotations={jobs.folder}/few.json","data.val_batch_size=2"]'
    sharded, sharded_rows, _ = evaluate(jobs, f"checkpoint={last}", few, "devices=2")
    for iou_type, own in figures.items():
        assert sharded[iou_type] == pytest.approx(own, abs=1e-4)
    assert [row["num_instances"] for row in sharded_rows] == [row["num_instances"] for row in rows]


def test_masks_of_a_pool_are_compared_with_sams(jobs, tmp_path):
    pool, sam = fill_pool(tmp_path / "pool", 4), save_tiny_sam(tmp_path / "sam")
    figures, rows, printed = evaluate(jobs, f"pool={pool}", f"segmenter={sam}", "max_images=2", "device=cpu")
    assert (figures["masks"]["num_images"], figures["masks"]["num_instances"]) == (2, 6)
    assert sum(int(row["num_instances"]) for row in rows) == 6
    mean = sum(float(row["mIoU"]) * int(row["num_instances"]) for row in rows) / 6
    assert figures["masks"]["mIoU"] == pytest.approx(mean) and 0 < mean < 100
    assert f"{mean:.2f}" in printed


def test_a_detector_says_what_it_confirms_of_a_pool(jobs, default_job):
    assert default_job.process.returncode == 0, default_job.output
    run_dir = default_job.run_dir
    figures, rows, printed = evaluate(
        jobs, f"checkpoint={run_dir}", f"pool={run_dir / 'pool'}", "max_images=3"
    )
    assert set(figures) == {"all", "rare", "common", "frequent"}
    shares = [figures["all"][f"score < {bound}"] for bound in ("0.01", "0.03", "0.1", "0.3", "0.5")]
    assert shares == sorted(shares) and shares[-1] > 0
    num_instances = sum(int(row["num_instances"]) for row in rows)
    assert 3 <= num_instances <= 12
    left_out = sum(float(row["score < 0.5"]) * int(row["num_instances"]) for row in rows) / num_instances
    assert left_out == pytest.approx(shares[-1]) and f"{shares[-1]:.2f}" in printed
