"""Training outlives its generator."""

import os
import signal

import pytest

from tests.run.conftest import SMALL, SMALL_SYNTHESIS
from tests.run.wandb_reader import read_wandb_run

pytestmark = pytest.mark.slow


def test_killed_generator_is_told_of_and_training_ends_well(jobs):
    job = jobs.start(
        "generator_killed",
        *SMALL,
        *SMALL_SYNTHESIS,
        "trainer.max_steps=12",
        "synthesis.wait=true",
        "synthesis.max_reuse=1",  # each step needs one new sample, so the generator must come back
        "synthesis.service.backoff_s=0.1",
    )
    job.wait_until(lambda: job.generator.accepted > 0)
    first = job.generator
    os.kill(first.pid, signal.SIGKILL)
    assert job.wait() == 0, job.output
    message = "generator w0 was killed by SIGKILL; restart 1 of 5 in 0.1 s"
    assert job.results["messages"] == [message]
    assert job.output.count(message) >= 2  # when it happened, and at the end
    assert job.results["steps"] == 12
    assert job.results["synthesis/generator_deaths"] == 1
    assert job.results["synthesis/fresh"] == 12
    assert job.generator.pid not in (first.pid, job.process.pid)
    assert read_wandb_run(job.run_dir).values("synthesis/generator_deaths")[-1] == 1


@pytest.mark.parametrize("when_dead", ["stop", "go_on"])
def test_generator_that_does_not_come_back_ends_the_run_or_leaves_real_images(jobs, when_dead):
    job = jobs.start(
        f"generator_lost_{when_dead}",
        *SMALL,
        *SMALL_SYNTHESIS,
        "synthesis.max_reuse=1",
        "synthesis.wait=true",
        f"synthesis.when_dead={when_dead}",
        "synthesis.service.max_restarts=0",
        "synthesis.images.poll_s=0.1",
    )
    job.wait_until(lambda: job.generator.pid > 0)
    os.kill(job.generator.pid, signal.SIGKILL)
    assert job.wait() == 2, job.output
    message = "generator w0 was killed by SIGKILL; it is given up after 1 deaths, training goes on while"
    last = job.output.strip().splitlines()[-1]
    alerts = read_wandb_run(job.run_dir).alerts
    assert alerts[0][0] == alerts[1][0] == "ERROR" and message in alerts[0][1] and message in alerts[1][1]
    assert last == f"error: {alerts[1][1]}"
    if when_dead == "stop":
        assert f"no generator is left and the pool {job.run_dir / 'pool'} is empty" in last
        assert "Stopped at step 1;" in last and (job.run_dir / "checkpoints" / "last.ckpt").exists()
        assert not (job.run_dir / "results.json").exists()
        return
    assert "this was no run with synthesis: real images filled 8 of its 8 synthetic slots" in last
    assert job.results["messages"] == [alerts[0][1], alerts[1][1]]
    assert job.results["synthesis/generators_alive"] == 0
    assert (job.results["synthesis/fallback"], job.results["steps"]) == (8, 8)
