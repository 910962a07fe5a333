"""SIGTERM and Ctrl-C save, at whatever step they come, and the resumed run is the same one."""

import signal

import pytest
import torch

from tests.run.conftest import NO_SYNTHESIS, SMALL
from tests.run.wandb_reader import read_wandb_run

pytestmark = pytest.mark.slow

LONG = [*SMALL, *NO_SYNTHESIS, "callbacks.last.every_n_train_steps=100000", "data.epoch_steps=1000"]


def saved_step(job):
    return torch.load(job.run_dir / "checkpoints" / "last.ckpt", weights_only=False)["global_step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_with_its_curves(jobs, number):
    stopped = jobs.start(f"stop_{number}", *LONG, "trainer.max_steps=100000")
    stopped.wait_until(lambda: "25/" in stopped.output.replace(" ", ""))
    assert stopped.stop(number) == 128 + number, stopped.output
    step = saved_step(stopped)
    assert step > 2 and sorted(stopped.losses()) == list(range(step))
    assert f"stopped by {number.name}; to go on: resume_from={stopped.run_dir}" in stopped.output
    assert "Traceback" not in stopped.output
    resumed = jobs.finish(
        f"went_on_{number}", *LONG, f"trainer.max_steps={step + 3}", f"resume_from={stopped.run_dir}"
    )
    assert resumed.process.returncode == 0, resumed.output
    losses = resumed.losses()
    assert sorted(losses) == list(range(step + 3))
    assert {key: losses[key] for key in range(step)} == stopped.losses()
    parts = [read_wandb_run(job.run_dir) for job in (stopped, resumed)]
    assert parts[0].run_id == parts[1].run_id
    steps = [part.values("trainer/global_step") for part in parts]
    assert max(steps[0]) <= step <= min(steps[1])
    folders = [next(job.run_dir.glob("wandb/offline-run-*")) for job in (stopped, resumed)]
    assert f"wandb sync {folders[0]} {folders[1]}" in "".join(resumed.output.split("\n"))


def test_nothing_is_promised_before_the_first_step(jobs):
    stopped = jobs.start("stop_early", *LONG, "data.num_workers=0")
    stopped.wait_until(lambda: "run folder" in stopped.output)
    assert stopped.stop(signal.SIGTERM) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    has_saved = (stopped.run_dir / "checkpoints" / "last.ckpt").exists()
    assert ("resume_from=" in stopped.output) == has_saved


def test_a_signal_during_a_validation_keeps_the_step_before_it(jobs):
    slow = ["data.epoch_steps=2", "trainer.limit_val_batches=null", "data.val_batch_size=1"]
    stopped = jobs.start("stop_validation", *LONG, *slow)
    stopped.wait_until((stopped.run_dir / "checkpoints" / "last.ckpt").exists)
    assert stopped.stop(signal.SIGINT) == 130, stopped.output
    assert saved_step(stopped) == 2 and f"resume_from={stopped.run_dir}" in stopped.output
    resumed = jobs.finish("after_validation", *LONG, "trainer.max_steps=4", f"resume_from={stopped.run_dir}")
    assert resumed.process.returncode == 0 and resumed.results["steps"] == 4, resumed.output
