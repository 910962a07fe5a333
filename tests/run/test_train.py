"""The main job as a person runs it, and the settings that it refuses."""

import csv
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from mflight.synthesis.pool import PoolReader
from mflight.synthesis.signals import Demand
from tests.run.conftest import SMALL
from tests.run.wandb_reader import read_wandb_run

pytestmark = pytest.mark.slow

AP_KEYS = {f"val/{kind}/{name}" for kind in ("segm", "bbox") for name in ("AP", "APr", "APc", "APf")}
LOSS_KEYS = {
    f"train/loss/{name}" for name in ("total", "classifier", "box", "mask", "objectness", "proposal_box")
}
LVIS_PAGE = "https://www.lvisdataset.org/dataset"


@pytest.fixture(scope="module")
def wandb_run(default_job):
    assert default_job.process.returncode == 0, default_job.output
    return read_wandb_run(default_job.run_dir)


def test_default_job_ends_well_and_prints_the_table(default_job):
    assert default_job.process.returncode == 0, default_job.output
    printed = default_job.output
    for name in ("APr", "APc", "APf", "boxes", "masks"):
        assert name in printed
    pool, best = default_job.run_dir / "pool", default_job.run_dir / "checkpoints" / "best.ckpt"
    assert best.is_file()
    for place in (default_job.run_dir, pool, best.parent):
        assert str(place) in printed
    assert re.search(r"wandb sync \S*default/wandb/offline-run-\S+", printed)
    assert "Traceback" not in printed


def test_wandb_history_holds_figures_losses_synthesis_and_panels(default_job, wandb_run):
    assert AP_KEYS | LOSS_KEYS | {"synthesis/synthetic_share", "synthesis/fallback"} <= wandb_run.keys
    assert len(wandb_run.values("val/segm/APr")) == 2  # validations, after step 4 and step 8
    assert len(wandb_run.values("train/loss/total")) == 8
    for name in AP_KEYS:
        assert wandb_run.values(name)[-1] == pytest.approx(default_job.results[name], abs=1e-6)
    assert wandb_run.config["trainer"]["max_steps"] == 8
    assert wandb_run.summary["val/segm/AP"] == wandb_run.values("val/segm/AP")[-1]


@pytest.mark.parametrize("panel", ["synthetic", "predictions"])
def test_panels_show_images_with_masks(default_job, wandb_run, panel):
    (files,) = default_job.run_dir.glob("wandb/offline-run-*/files")
    shown = wandb_run.values(f"panels/{panel}/filenames")[-1]
    masks = [masks["instances"]["path"] for masks in wandb_run.values(f"panels/{panel}/all_masks")[-1]]
    assert len(shown) == len(masks) > 0
    for image, mask in zip(shown, masks, strict=True):
        assert Image.open(files / image).size == Image.open(files / mask).size


def test_metrics_file_and_results_agree_with_wandb(default_job, wandb_run):
    steps, losses = zip(*default_job.losses().items(), strict=True)
    assert steps == tuple(range(8))
    assert losses == pytest.approx(wandb_run.values("train/loss/total"), rel=1e-6)
    assert default_job.results["steps"] == 8


def test_figures_of_synthesis_and_demand_are_in_wandb_and_csv(default_job, wandb_run):
    names = {"images_per_s", "pool_samples", "pool_bytes", "fresh_ratio", "reused_ratio", "fallback"}
    names |= {"age_steps", "mean_uses", "wait_s", "generator_idle_ratio", "rejected_ratio"}
    names |= {f"demand/{frequency}" for frequency in ("rare", "common", "frequent")}
    keys = {f"synthesis/{name}" for name in names}
    with (default_job.run_dir / "csv" / "metrics.csv").open() as file:
        assert keys <= set(csv.DictReader(file).fieldnames)
    assert (
        keys | {"synthesis/demand_by_class", "synthesis/demand_histogram"}
        <= {key.split("/_")[0] for key in wandb_run.keys} | wandb_run.keys
    )
    demand = Demand.read(default_job.run_dir / "pool")
    assert demand.step == 8 and sum(demand.weights.values()) == pytest.approx(1)
    with (default_job.run_dir / "demand.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4"] * 24 + ["8"] * 24
    assert any(row["loss"] for row in rows) and any(int(row["drawn"]) for row in rows)


def test_checkpoints_hold_the_weights_and_the_place(default_job):
    folder = default_job.run_dir / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    last = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=False)
    best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=False)
    assert last["global_step"] == 8
    assert last["optimizer_states"] and "optimizer_states" not in best
    assert last["state_dict"].keys() == best["state_dict"].keys()


def test_another_process_drew_the_synthetic_images(default_job):
    status = default_job.generator
    assert status.pid not in (0, default_job.process.pid)
    reader = PoolReader(default_job.run_dir / "pool")
    samples = [reader.read(ref) for ref in reader.poll()]
    assert len(samples) == status.accepted > 0
    assert all(sample.annotations for sample in samples)
    assert not reader.set_aside


def test_synthetic_share_is_exact_when_the_trainer_waits(default_job):
    results = default_job.results
    assert results["synthesis/synthetic_share"] == 0.25
    assert results["synthesis/fresh"] + results["synthesis/reused"] == 8
    assert results["synthesis/fallback"] == 0
    assert results["messages"] == []


def test_baseline_trains_without_a_generator(baseline_job):
    assert baseline_job.process.returncode == 0, baseline_job.output
    assert baseline_job.results["steps"] == 8
    assert AP_KEYS <= baseline_job.results.keys()
    assert not (baseline_job.run_dir / "pool").exists()
    assert "synthetic" not in baseline_job.output


def test_replay_trains_from_the_pool_of_another_run(jobs, default_job):
    pool = default_job.run_dir / "pool"
    before = default_job.generator
    settings = ["synthesis=replay", f"paths.pool_dir={pool}", "synthesis.synthetic_ratio=0.5"]
    job = jobs.finish("replay", *SMALL, "trainer.max_steps=4", *settings)
    assert job.process.returncode == 0, job.output
    assert job.results["synthesis/synthetic_share"] == 0.5
    assert job.results["synthesis/fresh"] == min(8, before.accepted)
    assert default_job.generator == before
    assert str(pool) in job.output and not (job.run_dir / "pool").exists()


REFUSED = {
    "experiment=lvis_rare": ["lvis_v1_train.json", "lvis_v1_val.json", LVIS_PAGE, "MFLIGHT_LVIS_ROOT"],
    "experiment=lvis_baseline": ["lvis_v1_train.json", "lvis_v1_val.json", LVIS_PAGE, "data.root"],
    "synthesis=replay": ["synthesis=replay needs a pool", "paths.pool_dir=", "pool.json"],
    "synthesis=none synthesis.synthetic_ratio=0.5": ["synthesis.synthetic_ratio=0.5", "synthesis=online"],
    "synthesis.synthetic_ratio=1.5": ["synthetic_ratio", "1.5"],
    "data.batch_size=0": ["batch_size", "greater than or equal to 1", "0"],
    "resume_from=nowhere": ["resume_from", "nowhere"],
}


@pytest.fixture(scope="module")
def refused_jobs(jobs):
    """All of them, two at a time."""
    names = [f"refused_{number}" for number in range(len(REFUSED))]
    with ThreadPoolExecutor(2) as pool:
        finished = pool.map(lambda name, line: jobs.finish(name, *line.split()), names, REFUSED)
        return dict(zip(REFUSED, finished, strict=True))


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_run_stops_before_anything_expensive_with_one_message(refused_jobs, line):
    job = refused_jobs[line]
    assert job.process.returncode == 1
    for words in REFUSED[line]:
        assert words in job.output
    assert job.output.count("Error") <= 3 and job.output.count("\n") < 20, job.output
    left = {path.name for path in job.run_dir.iterdir()} - {".hydra", "train.log"}
    assert left <= {"checkpoints"}, "no pool, no wandb run, no metrics"
