"""Real runs of train.py in processes of their own, made small by ordinary overrides only."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mflight.synthesis.pool.signals import WorkerStatus

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
SMALL = [
    "trainer.max_steps=8",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=2",
    "data.epoch_steps=4",
    "callbacks.last.every_n_train_steps=2",
    "callbacks.synthesis.every_n_steps=2",
    "callbacks.panels.every_n_steps=2",
]
SMALL_SYNTHESIS = [
    "synthesis.warmup_steps=0",
    "synthesis.cooldown_ratio=0",
    "diffusion.synthesizer.num_inference_steps=2",
]
NO_SYNTHESIS = ["synthesis=none"]
LIMIT_S = 400  # of one run on a busy machine; a free one needs a tenth of it


@dataclass
class Job:
    """One train.py: its process, its run folder, the file that takes what it prints."""

    process: subprocess.Popen
    run_dir: Path
    output_file: Path

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    @property
    def results(self) -> dict:
        return json.loads((self.run_dir / "results.json").read_text())

    @property
    def generator(self) -> WorkerStatus:
        return WorkerStatus.read(self.run_dir / "pool", "w0")

    def losses(self) -> dict[int, float]:
        """Return ``train/loss/total`` by step."""
        with (self.run_dir / "csv" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        name = "train/loss/total"
        return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}

    def wait(self) -> int:
        return self.process.wait(LIMIT_S)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that happens while the job runs."""
        deadline = time.monotonic() + LIMIT_S
        while not happened():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.wait()


class Jobs:
    """Starts jobs in one working folder, where they share the drawn dataset."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "PYTEST_"))},
            "MFLIGHT_DATA_DIR": str(folder / "data"),
            "MFLIGHT_LVIS_ROOT": str(folder / "no_lvis_here"),
            "NETRC": str(folder / "nobody_is_logged_in"),
        }
        if self.environment.pop("PYTHONDONTWRITEBYTECODE", ""):  # else all compile torch again
            self.environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")

    def start(self, name: str, *overrides: str) -> Job:
        command = [sys.executable, str(TRAIN), *overrides, f"hydra.run.dir={name}", f"hydra.sweep.dir={name}"]
        output_file = self.folder / f"{name}.txt"
        with output_file.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return Job(process, self.folder / name, output_file)

    def finish(self, name: str, *overrides: str) -> Job:
        """Run a job to its end."""
        job = self.start(name, *overrides)
        job.wait()
        return job


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    started = []

    class Remembering(Jobs):
        def start(self, name: str, *overrides: str) -> Job:
            started.append(super().start(name, *overrides))
            return started[-1]

    yield Remembering(tmp_path_factory.mktemp("jobs"))
    for job in started:
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait()


@pytest.fixture(scope="session")
def default_job(jobs):
    """The default job, waiting for its synthetic images, run to its end once for all tests."""
    shown = "callbacks.panels.min_score=0.0"  # after eight steps nothing is sure
    return jobs.finish("default", *SMALL, *SMALL_SYNTHESIS, "synthesis.wait=true", shown)


@pytest.fixture(scope="session")
def baseline_job(jobs):
    """The same steps on real images only, for people without wandb."""
    return jobs.finish("baseline", *SMALL, *NO_SYNTHESIS, "logger=tensorboard")
