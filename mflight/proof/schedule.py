"""Trainings side by side on one machine: who runs where, and what a person is told meanwhile."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mflight.proof.runs import Run, Share, TrainingProcess
from mflight.training.machine_share import all_gpus, share_of

_POLL_S = 0.5
_TOLD = ("AP", "APr", "APc", "APf")


class RunFailedError(RuntimeError):
    """A training has ended with an error; the message names it and holds its last lines."""


@dataclass(frozen=True)
class Place:
    """Where one training with a generator fits, or one or two on real images alone.

    Attributes:
        whole: for a training that draws.
        parts: for trainings that do not: the halves of the cores, as training and drawing have them on a
            CPU; on GPUs one part, the whole.
    """

    whole: Share
    parts: tuple[Share, ...]


@dataclass
class _Busy:
    place: Place
    share: Share
    process: TrainingProcess = field(repr=False)


def all_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return all_gpus() if named is None else [each for each in named.split(",") if each]


def hardware() -> str:
    """Return the number and names of the cores and GPUs that this process may use."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpus = visible_gpus()
    words = f"{len(all_cores())} cores of {cpu}"
    return f"{words}, {len(gpus)} GPUs: {_gpu_names()}" if gpus else words


def _gpu_names() -> str:
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return ", ".join(dict.fromkeys(line.strip() for line in told.stdout.splitlines()))


def divide_machine(*, cores: Sequence[int], gpus: Sequence[str], jobs: int | str) -> list[Place]:
    """Divide the machine into places of equal size.

    Args:
        cores: numbers of the cores.
        gpus: names of the GPUs.
        jobs: number of places; ``"auto"``: one for every two GPUs, of which one draws, else one.

    Returns:
        The places.

    Raises:
        ValueError: if ``jobs`` is neither ``"auto"`` nor a number from 1 to that of the GPUs, else the cores.
    """
    most = len(gpus) or len(cores)
    if jobs == "auto":
        jobs = max(1, len(gpus) // 2)
    if not isinstance(jobs, int) or not 1 <= jobs <= most:
        kind = "GPUs" if gpus else "cores"
        raise ValueError(f"jobs must be auto or a number from 1 to {most}, that of the {kind}, got {jobs!r}")
    places = []
    for number in range(jobs):
        own = Share(tuple(share_of(cores, number, jobs)), tuple(share_of(gpus, number, jobs) if gpus else ()))
        halves = (Share(tuple(share_of(own.cores, half, 2))) for half in (0, 1))
        places.append(Place(own, (own,) if gpus or len(own.cores) < 2 else tuple(halves)))
    return places


def run_all(
    runs: Sequence[Run],
    places: Sequence[Place],
    tell: Callable[[str], None],
    *,
    lock: int,
    note_finished: Callable[[Run, float], None] | None = None,
) -> None:
    """Train what is not finished, side by side where there is room, until all is done.

    After an error nothing more is started, and what runs is finished. However this ends, no process is left.

    Args:
        runs: in their order; those that draw first, for they need a whole place.
        places: of the machine.
        tell: takes a line for a person.
        lock: an open file that each training holds as long as it lives.
        note_finished: called with each run that has just ended well, and the seconds since its start.

    Raises:
        RunFailedError: if a training has ended with an error.
    """
    work = _Work(runs, places, tell, lock, note_finished)
    try:
        while work.goes_on:
            work.start_what_fits()
            time.sleep(_POLL_S)
            work.note_ends()
    finally:
        work.stop()
    if work.failed:
        raise RunFailedError("\n".join(work.failed))


class _Work:
    """What waits, what runs, what has ended."""

    def __init__(
        self,
        runs: Sequence[Run],
        places: Sequence[Place],
        tell: Callable[[str], None],
        lock: int,
        note_finished: Callable[[Run, float], None] | None,
    ):
        self._waiting = [run for run in runs if not run.is_finished]
        self._places, self._tell, self._lock, self._note_finished = places, tell, lock, note_finished
        self._busy: dict[Run, _Busy] = {}
        self._total, self._num_done, self._started_at = len(self._waiting), 0, time.monotonic()
        self.failed: list[str] = []

    @property
    def goes_on(self) -> bool:
        return bool(self._busy or (self._waiting and not self.failed))

    def start_what_fits(self) -> None:
        while self._waiting and not self.failed and (room := self._room(self._waiting[0])):
            run = self._waiting.pop(0)
            self._tell(f"{run.name}: {'goes on' if run.has_checkpoint else 'started'}, {run.folder}")
            self._busy[run] = _Busy(*room, run.start(room[1], pass_fds=(self._lock,)))

    def note_ends(self) -> None:
        for run, process in [(run, busy.process) for run, busy in self._busy.items()]:
            if process.poll() is None:
                continue
            del self._busy[run]
            if process.poll() == 0 and run.is_finished:
                self._num_done += 1
                if self._note_finished is not None:
                    self._note_finished(run, process.elapsed_s)
                took = f"{_figures(run)} in {duration(process.elapsed_s)}"
                self._tell(f"{run.name}: {took}; {self._num_done} of {self._total}{self._time_left()}")
            else:
                told = f"{run.name} has failed with exit status {process.poll()}, {run.folder}:"
                self.failed.append(f"{told}\n{process.last_lines()}")
                self._tell(f"{run.name}: failed")

    def stop(self) -> None:
        for busy in self._busy.values():
            busy.process.terminate()
        for busy in self._busy.values():
            busy.process.stop()

    def _room(self, run: Run) -> tuple[Place, Share] | None:
        """Return a place and a share of it that are free for a run."""
        for place in self._places:
            taken = [busy.share for busy in self._busy.values() if busy.place is place]
            if run.draws and not taken:
                return place, place.whole
            free = [] if place.whole in taken else [part for part in place.parts if part not in taken]
            if not run.draws and free:
                return place, free[0]
        return None

    def _time_left(self) -> str:
        num_left = len(self._waiting) + len(self._busy)
        left_s = (time.monotonic() - self._started_at) / self._num_done * num_left
        return f", about {duration(left_s)} left" if num_left else ""


def duration(seconds: float) -> str:
    """Write a length of time for a person: 45 s, 4 min 32 s, 2 h 1 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _figures(run: Run) -> str:
    results = run.results
    told = {name: results.get(f"val/segm/{name}", results.get(f"val/bbox/{name}", -1.0)) for name in _TOLD}
    return ", ".join(f"{name} {value:.1f}" for name, value in told.items() if value >= 0) or "no figures"
