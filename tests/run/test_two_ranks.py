"""Two training ranks on the CPU: train.py as it is started by a person, with trainer.devices=2."""

import os
import signal
import sys
from collections import Counter

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from mflight.data.lvis import read_categories
from mflight.synthesis.pool.writer import PoolWriter
from tests.run.batch_recorder import read_batches
from tests.run.conftest import TRAIN
from tests.unit.synthesis.squares import make_sample

sys.path.insert(0, str(TRAIN.parent / "benchmarks"))
from fault_runs import LIGHT, Run
from faults import build_world

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers.*", "ignore:.*__array__ implementation.*:DeprecationWarning"
    ),
]

NUM_STEPS, RESUMED_AT, CAP = 8, 3, 2
EVERY_CHECKPOINT = [
    "callbacks.last.save_top_k=-1",
    "callbacks.last.filename='at_{step}'",
    "+callbacks.last.auto_insert_metric_name=false",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def world(folder):
    return build_world(folder)


@pytest.fixture(scope="module")
def start(folder, world):
    """Start two ranks that train from a ready pool."""
    (category, *_) = read_categories(annotation_file=world / "train.json")
    with PoolWriter(folder / "pool", "w0") as writer:
        for index in range(11):  # six belong to rank 0, five to rank 1
            sample = make_sample(index, size_px=64, category_id=category.category_id)
            writer.append(sample, index=index)
    settings = [
        "trainer.devices=2",
        "synthesis=replay",
        f"paths.pool_dir={folder / 'pool'}",
        "data.repeat_threshold=0",
        "synthesis.background_loss=true",  # so few steps then leave an AP that is not 0
        *EVERY_CHECKPOINT,
    ]
    return lambda name, *more: Run(folder / name, world, [*settings, *more], NUM_STEPS)


@pytest.fixture(scope="module")
def whole(start):
    run = start("whole")
    assert run.wait() == 0, run.output
    return run


def ranks_of(run):
    return [read_batches(run.run_dir, rank) for rank in range(2)]


def losses_of(run):
    lines = (run.run_dir / "csv" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    return {int(row["step"]): float(row["train/loss/total"]) for row in rows if row["train/loss/total"]}


def test_each_rank_has_the_same_number_of_synthetic_slots_at_each_step(whole):
    ranks = ranks_of(whole)
    assert [len(lines) for lines in ranks] == [NUM_STEPS, NUM_STEPS]
    for first, second in zip(*ranks, strict=True):
        assert first["step"] == second["step"]
        assert len(first["real"]) == len(second["real"]) == 1
        assert len(first["synthetic"]) == len(second["synthetic"]) == 1


def test_no_image_comes_twice_in_the_real_part_of_an_epoch(whole, world):
    num_images = len(list((world / "train").glob("*")))
    seen = [image for lines in ranks_of(whole) for line in lines for image in line["real"]]
    assert len(seen) == 2 * NUM_STEPS <= num_images
    assert len(set(seen)) == len(seen)


def test_the_ranks_share_no_sample_and_keep_its_cap(whole):
    first, second = [
        Counter(name for line in lines for name in line["synthetic"]) for lines in ranks_of(whole)
    ]
    assert first.keys().isdisjoint(second.keys())
    assert max((first | second).values()) == CAP
    assert whole.results["synthesis/synthetic_share"] == 0.5


def test_a_resumed_run_goes_on_with_each_ranks_own_place(start, whole):
    checkpoint = whole.run_dir / "checkpoints" / f"at_{RESUMED_AT}.ckpt"
    resumed = start("resumed", f"resume_from={checkpoint}")
    assert resumed.wait() == 0, resumed.output
    expected = [[line for line in lines if line["step"] >= RESUMED_AT] for lines in ranks_of(whole)]
    assert ranks_of(resumed) == expected and expected[0] != expected[1]
    losses = losses_of(whole)
    assert losses_of(resumed) == pytest.approx(losses, rel=1e-5)  # those before are taken over
    for name in ("fresh", "reused", "fallback"):
        assert resumed.results[f"synthesis/{name}"] == whole.results[f"synthesis/{name}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_once_and_ends_both_ranks(start, number):
    long = ["callbacks.last.every_n_train_steps=100000", "data.epoch_steps=100000"]
    run = start(f"stopped_{number}", *long, "trainer.max_steps=100000")
    run.wait_until(lambda: min(map(len, ranks_of(run)), default=0) > 2)
    assert run.process.is_alive(), run.output
    os.kill(run.process.pid, number)
    assert run.wait() == 128 + number, run.output
    checkpoint = run.run_dir / "checkpoints" / "last.ckpt"
    step = torch.load(checkpoint, weights_only=False)["global_step"]
    batches = [[line["step"] for line in lines if line["step"] < step] for lines in ranks_of(run)]
    assert step > 2 and batches == [list(range(step))] * 2
    assert f"{number.name}: the run is saved at step {step}" in run.output
    assert f"stopped by {number.name}; to go on: resume_from={run.run_dir}" in run.output
    assert "Traceback" not in run.output
    resumed = start(f"resumed_{number}", *long, f"resume_from={run.run_dir}", f"trainer.max_steps={step + 2}")
    assert resumed.wait() == 0, resumed.output
    assert sorted(losses_of(resumed)) == list(range(step + 2))


def test_the_average_precision_of_two_ranks_is_that_of_one(whole, world):
    overrides = [line for line in LIGHT if not line.startswith("+")]
    with initialize_config_dir(str(TRAIN.parent / "conf"), version_base="1.3"):
        cfg = compose("train", [*overrides, "synthesis=replay", f"data.root={world}", "paths.run_dir=none"])
    module, datamodule = instantiate(cfg.module), instantiate(cfg.datamodule)
    saved = torch.load(whole.checkpoint, map_location="cpu", weights_only=False)
    module.load_state_dict(saved["state_dict"])
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, devices=1)
    (figures,) = trainer.validate(module, datamodule=datamodule, verbose=False)
    assert saved["global_step"] == NUM_STEPS
    assert max(figures.values()) > 0
    for name, value in figures.items():
        if name.startswith("val/best/"):
            continue  # of earlier validations
        assert whole.results[name] == pytest.approx(value, abs=1e-4), name
