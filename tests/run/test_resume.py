"""A run that is stopped and resumed ends where one ends that was never stopped."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.run.conftest import NO_SYNTHESIS, SMALL, SMALL_SYNTHESIS, TRAIN

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


def test_a_detector_of_other_classes_is_neither_resumed_nor_scored_nor_begun_from(jobs, baseline_job):
    assert baseline_job.process.returncode == 0, baseline_job.output
    last, renamed = baseline_job.run_dir / "checkpoints" / "last.ckpt", []
    for split in ("train", "val"):
        content = json.loads((jobs.folder / "data" / "minilvis" / f"{split}.json").read_text())
        first, second = content["categories"][:2]
        first["name"], second["name"] = second["name"], first["name"]
        (jobs.folder / f"renamed_{split}.json").write_text(json.dumps(content))
        renamed.append(f"data.{split}_annotations={jobs.folder}/renamed_{split}.json")
    told = f"and the dataset must name the same classes: category 1 is '{second['name']}' and"
    for key in ("resume_from", "model.weights"):
        job = jobs.finish(f"other_classes_{key}", *SMALL, *NO_SYNTHESIS, *renamed, f"{key}={last}")
        assert job.process.returncode == 2 and f"error: {key}={last} {told}" in job.output, job.output
    listed = f"overrides={json.dumps(renamed)}"
    command = [sys.executable, "-m", "mflight.evaluate", f"checkpoint={last}", listed]
    environment = {**jobs.environment, "PYTHONPATH": str(TRAIN.parent)}
    done = subprocess.run(command, cwd=jobs.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and f"error: checkpoint={last} {told}" in done.stderr, done.stderr
