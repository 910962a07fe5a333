"""One command, several runs."""

import json

import pytest

from tests.run.conftest import SMALL, SMALL_SYNTHESIS
from tests.run.wandb_reader import read_wandb_run

pytestmark = pytest.mark.slow


def test_multirun_makes_a_run_folder_for_each_ratio(jobs):
    settings = [*SMALL, *SMALL_SYNTHESIS, "trainer.max_steps=2", "synthesis.wait=true"]
    job = jobs.finish("sweep", "-m", "synthesis.synthetic_ratio=0.125,0.5", *settings)
    assert job.process.returncode == 0, job.output
    for number, ratio in enumerate((0.125, 0.5)):
        folder = job.run_dir / str(number)
        results = json.loads((folder / "results.json").read_text())
        assert results["synthesis/synthetic_share"] == ratio
        assert (folder / "pool" / "pool.json").is_file()
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        run = read_wandb_run(folder)
        assert run.config["synthesis"]["synthetic_ratio"] == ratio
        assert "val/segm/APr" in run.keys
