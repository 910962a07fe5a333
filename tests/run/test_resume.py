"""A run that is stopped and resumed ends where one ends that was never stopped."""

import os
import signal

import pytest

from tests.run.conftest import NO_SYNTHESIS, SMALL, SMALL_SYNTHESIS

pytestmark = pytest.mark.slow


def last_checkpoint(job):
    return job.run_dir / "checkpoints" / "last.ckpt"


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_killed_baseline_resumes_and_ends_with_the_same_loss(jobs, baseline_job):
    stopped = jobs.start("killed", *SMALL, *NO_SYNTHESIS)
    stopped.wait_until(last_checkpoint(stopped).exists)
    assert stopped.stop(signal.SIGKILL) == -signal.SIGKILL
    resumed = jobs.finish("killed_resumed", *SMALL, *NO_SYNTHESIS, f"resume_from={stopped.run_dir}")
    assert resumed.process.returncode == 0, resumed.output
    assert resumed.results["steps"] == 8
    assert str(last_checkpoint(stopped)) in resumed.output
    losses, expected = resumed.losses(), baseline_job.losses()
    assert losses.keys() == expected.keys()  # the curve is whole: that of before, and what was trained on
    for step, loss in losses.items():
        assert loss == pytest.approx(expected[step], rel=1e-6), f"step {step} of {losses}, {expected}"


def test_terminated_run_leaves_no_generator_and_resumes_with_its_pool(jobs):
    stopped = jobs.start("terminated", *SMALL, *SMALL_SYNTHESIS, "trainer.max_steps=2000")
    stopped.wait_until(lambda: last_checkpoint(stopped).exists() and stopped.generator.accepted > 0)
    assert stopped.stop(signal.SIGTERM) == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM; to go on: resume_from={stopped.run_dir}" in stopped.output
    before = stopped.generator
    assert not is_running(before.pid)
    step = max(stopped.losses(), default=0) + 4
    resumed = jobs.finish(
        "terminated_resumed",
        *SMALL,
        *SMALL_SYNTHESIS,
        f"trainer.max_steps={step}",
        "synthesis.max_fallback_ratio=1",  # it has not waited for its generator
        f"resume_from={stopped.run_dir}",
    )
    assert resumed.process.returncode == 0, resumed.output
    assert resumed.results["steps"] == step
    assert resumed.results["synthesis/images"] >= before.accepted
    assert str(stopped.run_dir / "pool") in resumed.output
    assert stopped.generator.pid != before.pid
