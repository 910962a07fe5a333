"""The main job as a person runs it, and the settings that it refuses."""

import csv
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from mflight.dashboard import build_workspace
from mflight.synthesis.pool.reader import PoolReader
from tests.run.conftest import LIMIT_S, SMALL
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


def shown_masks(job, wandb_run, panel):
    """Return the caption, the size of the image and the mask of each picture of the last panel; none dark."""
    (files,) = job.run_dir.glob("wandb/offline-run-*/files")
    captions, images, masks = (
        wandb_run.values(f"panels/{panel}/{key}")[-1] for key in ("captions", "filenames", "all_masks")
    )
    assert all(np.asarray(Image.open(files / image)).max() > 100 for image in images)
    return [
        (caption, Image.open(files / image).size, np.asarray(Image.open(files / mask["instances"]["path"])))
        for caption, image, mask in zip(captions, images, masks, strict=True)
    ]


def test_panels_of_synthetic_images_show_the_instances_of_their_samples(default_job, wandb_run):
    reader = PoolReader(default_job.run_dir / "pool")
    refs = {ref.sample_id: ref for ref in reader.poll()}
    pictures = shown_masks(default_job, wandb_run, "synthetic")
    assert pictures
    for sample_id, size_wh, mask in pictures:
        assert mask.shape == size_wh[::-1]
        drawn = {annotation["category_id"] for annotation in reader.read(refs[sample_id]).annotations}
        assert set(np.unique(mask)) - {0} == drawn  # MiniLVIS: a label is its category_id


def test_panels_of_predictions_show_what_was_found(default_job, wandb_run):
    pictures = shown_masks(default_job, wandb_run, "predictions")
    assert len(pictures) == 8
    assert all(mask.shape == size_wh[::-1] and mask.max() <= 24 for _, size_wh, mask in pictures)
    assert any(mask.any() for *_, mask in pictures)


@pytest.mark.parametrize("panel", ["synthetic", "predictions"])
def test_panels_name_the_classes(jobs, wandb_run, panel):
    categories = json.loads((jobs.folder / "data" / "minilvis" / "train.json").read_text())["categories"]
    singletons = wandb_run.config["_wandb"]["mask/class_labels"]
    named = singletons[f"panels/{panel}_wandb_delimeter_instances"]["value"]
    assert named == {"0": "background"} | {str(one["id"]): one["name"] for one in categories}


def test_the_table_of_classes_tells_what_there_was_to_learn_from(jobs, default_job, wandb_run):
    (files,) = default_job.run_dir.glob("wandb/offline-run-*/files")
    table = json.loads((files / wandb_run.values("val/per_class/path")[-1]).read_text())
    told = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    rows = {row["category_id"]: row for row in told}
    train = json.loads((jobs.folder / "data" / "minilvis" / "train.json").read_text())
    pairs = {(one["category_id"], one["image_id"]) for one in train["annotations"]}
    images = Counter(category_id for category_id, _ in pairs)
    names = {"r": "rare", "c": "common", "f": "frequent"}
    assert len(told) == len(rows) == len(train["categories"]) == 24
    for one in train["categories"]:
        row = rows[one["id"]]
        assert (row["name"], row["frequency"]) == (one["name"], names[one["frequency"]])
        assert row["num_train_images"] == images[one["id"]]
        assert {"segm/AP", "bbox/AP"} <= row.keys()


def test_all_that_the_workspace_shows_is_in_the_run(wandb_run):
    pytest.importorskip("wandb_workspaces")
    workspace = build_workspace()
    panels = [panel for section in workspace.sections for panel in section.panels]
    shown = {key for panel in panels for key in keys_of(panel)}
    logged = wandb_run.keys | {key.rpartition("/")[0] for key in wandb_run.keys if key.endswith("/_type")}
    assert {"panels/synthetic", "val/per_class", "val/segm/APr", "trainer/global_step"} <= shown
    assert shown <= logged
    columns = [column.partition(":") for column in workspace.runset_settings.pinned_columns]
    assert {place for place, *_ in columns} == {"run", "summary", "config"}  # the first is the run's name
    assert all(key in wandb_run.summary for place, _, key in columns if place == "summary")
    config = OmegaConf.create(wandb_run.config)
    keys = [
        key.replace(".value", "", 1) for place, _, key in columns if place == "config"
    ]  # as W&B stores it
    assert keys and all(OmegaConf.select(config, key) is not None for key in keys)


def keys_of(panel):
    """Return the keys of wandb's history that a panel of the workspace reads."""
    found = [getattr(panel, name, None) for name in ("x", "y", "metric", "media_keys", "table_name")]
    flat = [key for value in found for key in (value if isinstance(value, list) else [value])]
    return {getattr(key, "name", key) for key in flat if key is not None}


def test_metrics_file_and_results_agree_with_wandb(default_job, wandb_run):
    steps, losses = zip(*default_job.losses().items(), strict=True)
    assert steps == tuple(range(8))
    assert losses == pytest.approx(wandb_run.values("train/loss/total"), rel=1e-6)
    assert default_job.results["steps"] == 8


def test_figures_of_synthesis_are_in_wandb_and_csv(default_job, wandb_run):
    names = {"images_per_s", "pool_samples", "pool_bytes", "fresh_ratio", "reused_ratio", "fallback"}
    names |= {"mean_uses", "wait_s", "generator_idle_ratio", "rejected_ratio"}
    keys = {f"synthesis/{name}" for name in names}
    with (default_job.run_dir / "csv" / "metrics.csv").open() as file:
        assert keys <= set(csv.DictReader(file).fieldnames)
    assert keys <= wandb_run.keys


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
    assert results["synthesis/synthetic_share"] == 0.2
    assert results["synthesis/fresh"] + results["synthesis/reused"] == 8
    assert results["synthesis/fallback"] == 0
    assert results["messages"] == []


def test_results_tell_what_training_and_drawing_cost(default_job, baseline_job):
    assert 1 < default_job.results["train_s"] < LIMIT_S and 1 < baseline_job.results["train_s"] < LIMIT_S
    assert 0.1 < default_job.results["synthesis/busy_s"] < LIMIT_S


def test_baseline_trains_without_a_generator(baseline_job):
    assert baseline_job.process.returncode == 0, baseline_job.output
    assert baseline_job.results["steps"] == 8
    assert AP_KEYS <= baseline_job.results.keys()
    assert not (baseline_job.run_dir / "pool").exists()
    assert "synthetic" not in baseline_job.output


def test_tensorboard_and_csv_have_the_same_figures_without_wandb(baseline_job):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert baseline_job.process.returncode == 0, baseline_job.output
    assert not (baseline_job.run_dir / "wandb").exists()
    events = accumulator.EventAccumulator(str(baseline_job.run_dir / "tensorboard"))
    events.Reload()
    with (baseline_job.run_dir / "csv" / "metrics.csv").open() as file:
        columns = set(csv.DictReader(file).fieldnames)
    assert set(events.Tags()["scalars"]) - {"epoch"} == columns - {"epoch", "step"}
    assert AP_KEYS | LOSS_KEYS <= columns
    losses = {event.step: event.value for event in events.Scalars("train/loss/total")}
    assert losses == pytest.approx(baseline_job.losses(), rel=1e-6)
    assert "panels/predictions/0" in events.Tags()["images"]


def test_replay_trains_from_the_pool_of_another_run(jobs, default_job):
    pool = default_job.run_dir / "pool"
    before, files = default_job.generator, {path: path.stat().st_mtime_ns for path in pool.iterdir()}
    settings = [
        "synthesis=replay",
        f"paths.pool_dir={pool}",
        "synthesis.synthetic_ratio=0.5",
        "synthesis.cooldown_ratio=0",
    ]
    job = jobs.finish("replay", *SMALL, "trainer.max_steps=4", *settings)
    assert job.process.returncode == 0, job.output
    assert job.results["synthesis/synthetic_share"] == 0.5
    assert job.results["synthesis/fresh"] == min(16, before.accepted)
    assert default_job.generator == before
    assert {path: path.stat().st_mtime_ns for path in pool.iterdir()} == files
    assert str(pool) in job.output and not (job.run_dir / "pool").exists()


REFUSED = {
    "experiment=lvis_rare": ["lvis_v1_train.json", "lvis_v1_val.json", LVIS_PAGE, "MFLIGHT_LVIS_ROOT"],
    "experiment=lvis_baseline": ["lvis_v1_train.json", "lvis_v1_val.json", LVIS_PAGE, "data.root"],
    "synthesis=replay": ["synthesis=replay needs a pool", "paths.pool_dir=", "pool.db"],
    "synthesis=none synthesis.synthetic_ratio=0.5": ["synthesis.synthetic_ratio=0.5", "synthesis=online"],
    "synthesis.synthetic_ratio=1.5": ["synthetic_ratio", "1.5"],
    "data.batch_size=0": ["batch_size", "greater than or equal to 1", "0"],
    "resume_from=nowhere": ["resume_from", "nowhere"],
    "diffusion=sd14 diffusion.checkpoint=/nowhere/sd": ["no folder '/nowhere/sd'"],
    "synthesis.planner.rule=nonsense": ["synthesis.planner.rule", "'inverse_frequency'", "'nonsense'"],
    "synthesis.planner.main_frequencies=[]": [
        "main_frequencies=[]",
        "synthesis.planner.rule=inverse_frequency",
    ],
    "synthesis.when_dead=perhaps": ["when_dead", "'go_on'", "'perhaps'"],
    "trainer.devices=2 diffusion.synthesizer.labeler.threshold=7": ["diffusion.synthesizer.labeler", "7"],
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
    assert job.process.returncode == 2
    for words in REFUSED[line]:
        assert words in job.output
    told = [line for line in job.output.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "Traceback" not in job.output and job.output.count("\n") < 10, job.output
    left = {path.name for path in job.run_dir.iterdir()} - {".hydra", "train.log", "run_plan.json"}
    assert left <= {"checkpoints"}, "no pool, no wandb run, no metrics"
