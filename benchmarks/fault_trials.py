"""Trials of `faults.py` in which a light trainer, without a detector, reads the pool of real generators."""

import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mflight.data.mixing import MixedBatches
from mflight.data.share import SyntheticShare
from mflight.synthesis.pool.index import INDEX_NAME, PoolError
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.recovery import find_unacknowledged
from mflight.synthesis.service import ServiceReport, SynthesisService
from mflight.synthesis.stream import PoolStream
from mflight.synthesis.worker import WorkerSpec, run_worker
from tests.unit.synthesis.squares import categories, generator_settings

PATIENCE_S = 600.0
CAP = 2
NUM_CUTS = 16


@dataclass
class Outcome:
    """What one trial showed.

    Attributes:
        hung: it did not end in time.
        crashed: what should go on ended by an error.
        lost: samples that were acknowledged or asked for, and were not there in the end.
        over_cap: samples used more often than the cap.
        told: the user was told what happened.
        note: what was odd.
    """

    hung: bool = False
    crashed: bool = False
    lost: int = 0
    over_cap: int = 0
    told: bool = True
    note: str = ""

    @property
    def is_clean(self) -> bool:
        return not (self.hung or self.crashed or self.lost or self.over_cap) and self.told


class TrialSkippedError(Exception):
    """This machine does not allow the trial."""


class LightTrainer:
    """Takes mixed batches as a training does, without a detector, and counts the uses of each sample."""

    def __init__(self, folder: Path):
        self.stream = PoolStream(
            pool_dir=folder, categories=categories(), max_reuse=CAP, poll_interval_s=0.0, seed=3
        )
        self._batches = MixedBatches(
            real=_BlackImages(),
            sampler=range(10),
            synthetic=self.stream,
            share=SyntheticShare(mixing="replace", batch_size=2, synthetic_ratio=0.5),
            epoch_steps=10**6,
        )
        self._endless = iter(self._batches)
        self.uses: Counter[str] = Counter()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            _, targets = next(self._endless)
            self.uses.update(target["sample_id"] for target in targets if target["is_synthetic"])

    @property
    def over_cap(self) -> int:
        return sum(uses > CAP for uses in self.uses.values())


class _BlackImages:
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        return torch.zeros(3, 8, 8, dtype=torch.uint8), {"is_synthetic": False}


def worker_killed(folder: Path, draws: random.Random, number: int) -> Outcome:
    """SIGKILL a generator at any moment: while it loads, draws or writes."""
    count, moment = 40, draws.random()
    running = service(folder, {"seconds": 0.02}, max_requests=count, batch_size=3)
    trainer, messages, is_killed = LightTrainer(folder), [], False
    with running:
        time.sleep(draws.uniform(0.0, 1.0 if moment < 0.25 else 0.05))

        def look(report: ServiceReport) -> bool:
            nonlocal is_killed
            if not is_killed and (moment < 0.25 or report.total("requests") >= (moment - 0.25) * 50):
                time.sleep(draws.uniform(0.0, 0.06))
                is_killed = kill_worker()
            return report.is_over

        report = attend([running], [look], trainer, messages)
    trainer.step(3 * count)
    told = is_killed and any("was killed by SIGKILL; restart 1" in message for message in messages)
    return judged(folder, trainer, expected(count), hung=report is None, told=told)


def two_writers(folder: Path, draws: random.Random, number: int) -> Outcome:
    """Two runs take the same pool for their own at once; one of them is refused, and says so."""
    count, devices = 24, ["cpu"] * (1 + number % 2)
    both = [
        service(folder, {"seconds": 0.05}, max_requests=count, devices=devices, max_restarts=0)
        for _ in range(2)
    ]
    trainer, messages = LightTrainer(folder), []
    with both[0]:
        time.sleep(draws.uniform(0.0, 0.2))
        with both[1]:
            ends = [lambda report: report.is_over] * 2
            report = attend(both, ends, trainer, messages)
    trainer.step(3 * count)
    told = any("is in use by pid" in message for message in messages)
    return judged(folder, trainer, expected(count), hung=report is None, told=told)


def disk_full(folder: Path, draws: random.Random, number: int) -> Outcome:
    """The pool's disk fills, or nearly; drawing stops, training goes on with what is there."""
    min_free_bytes = 40_000 if number % 2 else 0
    with tiny_disk(folder, size_kb=draws.randrange(120, 200)):
        running = service(folder, image_format="png", min_free_bytes=min_free_bytes)
        trainer, messages = LightTrainer(folder), []
        with running:
            report = attend([running], [lambda report: report.is_over], trainer, messages)
        trainer.step(200)
        indices = read_indices(folder)
        told = any("the disk is full" in message and "goes on" in message for message in messages)
        outcome = judged(folder, trainer, expected(max(indices) + 1), hung=report is None, told=told)
        if not trainer.uses or (min_free_bytes and shutil.disk_usage(folder).free < min_free_bytes // 2):
            outcome.crashed, outcome.note = True, "no sample was used, or no room was left"
        return outcome


def shard_cut(folder: Path, draws: random.Random, number: int) -> Outcome:
    """A shard is cut somewhere; what lies before the cut is used, the rest is drawn again."""
    return _cut(folder, number, "shard-*.tar")


def index_cut(folder: Path, draws: random.Random, number: int) -> Outcome:
    """The index is cut somewhere; a new one is made from the shards."""
    return _cut(folder, number, INDEX_NAME)


def _cut(folder: Path, number: int, name: str) -> Outcome:
    count, sixteenth = 16, number % NUM_CUTS
    draw_here(folder, count)
    trainer = LightTrainer(folder)
    if number % 2:  # a reader that has seen the whole file
        trainer.step(2)
    (path,) = folder.glob(name)
    os.truncate(path, path.stat().st_size * sixteenth // NUM_CUTS)
    outcome = Outcome(told=bool(find_unacknowledged(folder)))
    intact = {f"7-{index:08d}" for index in read_indices(folder)}
    trainer.step(4 * count)
    outcome.told |= bool(trainer.stream.set_aside) or is_told_by_a_reader(folder)
    outcome.lost += len(intact - trainer.uses.keys())
    draw_here(folder, count)
    trainer.step(8 * count)
    outcome.lost += len(expected(count) - set(read_indices(folder)))
    outcome.over_cap = trainer.over_cap
    return outcome


def service(folder: Path, synthesizer: dict | tuple = (), **settings: object) -> SynthesisService:
    return SynthesisService(generator_settings(folder, synthesizer, **settings))


def draw_here(folder: Path, count: int) -> None:
    """Do a generator's work in this process, up to a number of requests."""
    before = signal.getsignal(signal.SIGTERM)
    settings = generator_settings(folder, max_requests=count, capture_output=False)
    try:
        run_worker(WorkerSpec(settings))
    finally:
        signal.signal(signal.SIGTERM, before)


def attend(
    services: list[SynthesisService],
    ends: list[Callable[[ServiceReport], bool]],
    trainer: LightTrainer,
    messages: list[str],
) -> ServiceReport | None:
    """Train and look after the services until each has come to its end; None if one does not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        trainer.step()
        reports = [one.poll() for one in services]
        for report in reports:
            messages.extend(report.messages)
        if all([end(report) for end, report in zip(ends, reports, strict=True)]):
            return reports[0]
        time.sleep(0.01)
    return None


def judged(folder: Path, trainer: LightTrainer, wanted: set[int], *, hung: bool, told: bool) -> Outcome:
    found = read_indices(folder)
    lost = len(wanted - set(found)) + len(found) - len(set(found)) + len(find_unacknowledged(folder))
    unused = len(wanted) - len(trainer.uses) if not hung else 0
    return Outcome(hung=hung, lost=lost + max(0, unused), over_cap=trainer.over_cap, told=told)


def expected(count: int) -> set[int]:
    return {index for index in range(count) if index % 4 != 3}  # the stand-in drops each fourth canvas


def read_indices(folder: Path) -> list[int]:
    """Return the requests whose samples can be read."""
    reader, found = PoolReader(folder), []
    for ref in reader.poll():
        with contextlib.suppress(PoolError):
            found.append(reader.read(ref).provenance["index"])
    return found


def is_told_by_a_reader(folder: Path) -> bool:
    reader = PoolReader(folder)
    reader.poll()
    return bool(reader.set_aside)


def kill_worker() -> bool:
    """SIGKILL the generator process of this one, if it lives."""
    for process in multiprocessing.active_children():
        if process.name == "mflight-w0":
            os.kill(process.pid, signal.SIGKILL)
            return True
    return False


@contextlib.contextmanager
def tiny_disk(folder: Path, size_kb: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        raise TrialSkippedError(f"mounting a small disk needs root ({os.strerror(errno.EPERM)})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
