"""The rows of benchmarks/minilvis.py compose, and its record holds what stands in the run folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.test_configs import RUNTIME, compose_with

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import minilvis  # noqa: E402


def write_run(folder, segm_ap, **results):
    (folder / ".hydra").mkdir(parents=True)
    overrides = "[synthesis=none, seed=4, hydra.run.dir=x]"
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra: {{overrides: {{task: {overrides}}}}}")
    figures = {f"val/{kind}/{name}": segm_ap for kind in ("segm", "bbox") for name in minilvis.FIGURES}
    (folder / "results.json").write_text(json.dumps({"steps": 20, **figures, **results}))
    return folder


def add(output, row, steps, seed, folder):
    command = [sys.executable, "benchmarks/minilvis.py", "--output", str(output), "--commit", "abc123"]
    command += ["--add", row, str(steps), str(seed), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("row", minilvis.ROWS)
def test_each_row_composes_and_only_real_ones_draw_nothing(row):
    cfg = compose_with([*RUNTIME, *minilvis.ROWS[row], *minilvis.FIXED])
    is_real = "synthesis=none" in minilvis.ROWS[row]
    assert (cfg.synthesis.synthetic_ratio == 0) == is_real
    assert (cfg.synthesis.stream is None) == (is_real or cfg.synthesis.control)


def test_runs_made_elsewhere_are_taken_over_and_averaged(tmp_path):
    output = tmp_path / "results" / "minilvis.json"
    for seed, segm_ap in ((0, 40.0), (1, 44.0)):
        folder = write_run(tmp_path / str(seed), segm_ap, train_s=100.0, **{"synthesis/images": 7})
        done = add(output, "online", 20, seed, folder)
        assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    run = record["runs"]["online/20/1"]
    assert (run["commit"], run["command"]) == ("abc123", "python train.py synthesis=none seed=4")
    assert run["figures"]["segm_APr"] == 44.0 and run["images_generated"] == 7
    (row,) = record["rows"]
    assert (row["name"], row["seeds"], row["steps"]) == ("online", [0, 1], 20)
    assert row["segm_AP_mean"] == 42.0 and row["segm_AP_std"] == pytest.approx(8**0.5)
    assert json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT ")) == record["rows"]


def test_an_unknown_row_and_a_missing_machine_time_are_told(tmp_path):
    done = add(tmp_path / "r.json", "onlin", 20, 0, tmp_path)
    assert done.returncode == 2 and "got onlin" in done.stderr
    record = minilvis.Record(tmp_path / "r.json")
    with pytest.raises(SystemExit, match="needs the machine time of real_only/20/3, online/20/3"):
        minilvis.make_run("real_only_equal_time", 20, 3, tmp_path, record)
