"""One command, several runs: grids, Optuna, several training ranks, and W&B's own sweeps."""

import csv
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from mflight.compare import main as compare
from tests.run.conftest import LIMIT_S, SMALL, SMALL_SYNTHESIS, TRAIN
from tests.run.test_evaluate import evaluate
from tests.run.wandb_reader import read_wandb_run

pytestmark = pytest.mark.slow

TINY = [*SMALL, "trainer.max_steps=1", "trainer.limit_val_batches=1"]
TINY.remove("trainer.limit_val_batches=2"), TINY.remove("trainer.max_steps=8")
AVERAGED = [  # in 16 bits, with a loss that counts, validated with averaged weights
    "synthesis=none",
    "seed=4",
    "data.epoch_steps=2",
    "trainer.precision=bf16-mixed",
    "model/classification_loss=seesaw",
    "callbacks=ema",
    "callbacks.ema.decay=0.5",
    "optim.lr_schedule.warmup_steps=0",
]
SWEEP_FILE = TRAIN.parent / "conf" / "wandb_sweep.yaml"


@pytest.fixture(scope="module")
def sweeps(jobs, default_job):
    """All of them, two at a time; those of one rank take synthetic images from the default job's pool."""
    replay = ["synthesis=replay", f"paths.pool_dir={default_job.run_dir / 'pool'}", *TINY]
    online = [*SMALL_SYNTHESIS, *TINY, "synthesis.wait=true", "trainer.devices=2", "trainer.max_steps=2"]
    side_by_side = ["hydra/launcher=one_machine", "hydra.launcher.n_jobs=2"]
    lines = {
        "ranks": ["sweep=ratio", "synthesis.synthetic_ratio=0,0.5", "seed=3", *online],
        "grid": ["-m", "sweep=ratio", "synthesis.synthetic_ratio=0,0.5", "seed=0,1", *replay, *side_by_side],
        "cluster": ["-m", "hydra/launcher=submitit_local", *AVERAGED, *TINY, "trainer.max_steps=2"],
        "optuna": ["sweep=optuna", "hydra.sweeper.n_trials=4", *replay],
    }
    with ThreadPoolExecutor(2) as pool:
        started = {name: pool.submit(jobs.finish, name, *line) for name, line in lines.items()}
        started["wandb"] = pool.submit(run_wandb_command, jobs, replay)
    return {name: job.result() for name, job in started.items()}


def run_wandb_command(jobs, overrides: list[str]) -> subprocess.CompletedProcess:
    """Compose and run what a W&B agent does for one run of the sweep file, but for the server."""
    sweep = OmegaConf.to_container(OmegaConf.load(SWEEP_FILE), resolve=False)
    arguments = {key: {"value": choice["values"][-1]} for key, choice in sweep["parameters"].items()}
    macros = create_sweep_command_args({"args": arguments})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    command = []
    for word in create_sweep_command(sweep["command"]):
        command += macros[word[2:-1]] if word.startswith("${") else [word]
    (jobs.folder / "agent.yaml").write_text(json.dumps({"wandb_version": 1, **arguments}))
    environment = {
        **jobs.environment,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "sweep123",
        "WANDB_RUN_ID": "run45678",
        "WANDB_SWEEP_PARAM_PATH": str(jobs.folder / "agent.yaml"),
    }
    folder = jobs.folder / "wandb_sweep"
    return subprocess.run(
        [*command, *overrides, f"hydra.run.dir={folder}"],
        cwd=TRAIN.parent,  # as an agent's: the program has no path
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def folders_of(job) -> list[Path]:
    assert job.process.returncode == 0, job.output
    return sorted(path for path in job.run_dir.iterdir() if path.is_dir())


def test_a_sweep_with_two_ranks_runs_each_job_once_and_in_its_own_folder(sweeps, jobs):
    job = sweeps["ranks"]
    assert [folder.name for folder in folders_of(job)] == ["0", "1"]
    assert job.output.count("LVIS validation, percent") == 2
    assert len(re.findall("trains on cpu 2", job.output)) == 2
    assert not (jobs.folder / "runs").exists(), "a rank began a run of its own"
    for number, ratio in enumerate((0, 0.5)):
        folder = job.run_dir / str(number)
        results = json.loads((folder / "results.json").read_text())
        assert results["steps"] == 2 and results["synthesis/synthetic_share"] == ratio
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert (folder / "pool" / "pool.db").is_file() == (ratio > 0)


def test_a_sweep_side_by_side_gives_each_process_a_share(sweeps):
    job = sweeps["grid"]
    assert len(folders_of(job)) == 4
    logs = [(folder / "train.log").read_text() for folder in folders_of(job)]
    shares = [share for log in logs for share in re.findall(r"share (\d) of 2", log)]
    assert shares and len(shares) == len(set(shares))  # a process claims one, once


def test_a_job_of_a_cluster_launcher_averages_in_16_bits_and_scores_again_the_same(sweeps, jobs):
    job = sweeps["cluster"]
    assert job.process.returncode == 0, job.output
    assert any((job.run_dir / ".submitit").iterdir())
    results = json.loads((job.run_dir / "0" / "results.json").read_text())
    assert results["steps"] == 2 and results["val/bbox/AR"] > 0
    best = torch.load(job.run_dir / "0" / "checkpoints" / "best.ckpt", weights_only=False)
    averaged, trained = best["state_dict"], best["current_model_state"]
    weight = "model.roi_heads.box_predictor.cls_score.weight"
    assert averaged[weight].dtype == torch.float32 and not torch.equal(averaged[weight], trained[weight])
    assert averaged["model.roi_heads.classification_loss.class_counts"].sum() > 0
    figures, _, _ = evaluate(jobs, f"checkpoint={job.run_dir / '0'}")
    for iou_type in ("bbox", "segm"):
        for name, value in figures[iou_type].items():
            assert value == pytest.approx(results[f"val/{iou_type}/{name}"], abs=1e-5)


def test_a_rank_that_fails_ends_the_run_with_its_error(jobs, monkeypatch):
    settings = ["synthesis=none", "trainer.devices=2", "optim.optimizer.lr=-1", *TINY]
    told = jobs.finish("refused_ranks", *settings)
    assert told.process.returncode == 2
    assert "error: Invalid learning rate: -1" in told.output and "Traceback" not in told.output
    monkeypatch.setitem(jobs.environment, "MFLIGHT_DEBUG", "1")
    job = jobs.finish("failing_ranks", *settings)
    assert job.process.returncode == 1
    assert "RuntimeError: rank" in job.output and "Invalid learning rate: -1" in job.output
    assert f'File "{TRAIN.parent / "mflight" / "rank.py"}"' in job.output, "the ranks run the same mflight"


def test_the_runs_of_a_sweep_form_a_group_and_tell_what_sets_them_apart(sweeps):
    for name, seed, extra in (("ranks", 3, ""), ("grid", 0, " seed=0")):
        folder = folders_of(sweeps[name])[1 if name == "ranks" else 2]
        run = read_wandb_run(folder)
        assert run.group == f"mini {name}" and run.name == f"mini synthetic_ratio=0.5{extra}"
        assert run.config["synthesis"]["synthetic_ratio"] == 0.5 and run.config["seed"] == seed
        assert "val/best/segm/APr" in run.summary


def test_compare_tells_mean_and_spread_of_two_ratios_over_two_seeds(sweeps, capsys):
    folders = folders_of(sweeps["grid"])
    assert len(folders) == 4
    compare([str(sweeps["grid"].run_dir)])
    printed = capsys.readouterr().out
    with (sweeps["grid"].run_dir / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["synthesis.synthetic_ratio"], row["seeds"]) for row in rows] == [
        ("0", "0 1"),
        ("0.5", "0 1"),
    ]
    for row, own in zip(rows, (folders[:2], folders[2:]), strict=True):
        for figure in ("AP", "APr", "APc", "APf"):
            values = [json.loads((f / "results.json").read_text())[f"val/segm/{figure}"] for f in own]
            assert float(row[f"{figure}_mean"]) == pytest.approx(statistics.mean(values), abs=1e-4)
            assert float(row[f"{figure}_std"]) == pytest.approx(statistics.stdev(values), abs=1e-4)
    assert "synthetic_ratio" in printed and "±" in printed
    assert Image.open(sweeps["grid"].run_dir / "compare.png").width > 1000


def test_optuna_tries_four_and_names_the_best(sweeps):
    folders = folders_of(sweeps["optuna"])
    assert len(folders) == 4
    reached = [json.loads((folder / "results.json").read_text())["val/segm/AP"] for folder in folders]
    best = OmegaConf.load(sweeps["optuna"].run_dir / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(reached))
    ratios = [OmegaConf.load(f / ".hydra" / "config.yaml").synthesis.synthetic_ratio for f in folders]
    assert len(set(ratios)) == 4 and all(0 <= ratio <= 0.5 for ratio in ratios)
    assert best.best_params["synthesis.synthetic_ratio"] in ratios


def test_the_command_of_a_wandb_sweep_runs_under_the_agents_id(sweeps, jobs):
    process = sweeps["wandb"]
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.args[:2] == ["/usr/bin/env", "python"] and "seed=2" in process.args
    (folder,) = (jobs.folder / "wandb_sweep" / "wandb").glob("offline-run-*")
    assert folder.name.endswith("run45678")
    run = read_wandb_run(jobs.folder / "wandb_sweep")
    assert run.sweep_id == "sweep123" and run.group is None
    assert run.config["seed"] == 2 and run.config["synthesis"]["synthetic_ratio"] == 0.5
    assert "val/segm/APr" in run.keys
