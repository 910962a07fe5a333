"""Keeps the generator processes alive beside a training run, and tells what happens to them. No torch."""

import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, validate_call

from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.pool.throttle import WhenFull, check_marks
from mflight.synthesis.process_start import environment, last_words, thread_settings
from mflight.synthesis.restarts import Restarts
from mflight.synthesis.worker import EXIT_DISK_FULL, EXIT_SETTINGS, WorkerSpec, log_path, run_worker

logger = logging.getLogger(__name__)

PositiveInt = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class ServiceReport:
    """Where the generators stand.

    Attributes:
        alive: processes that live now.
        restarting: dead workers that wait to be started again.
        given_up: workers that will not be started again.
        num_deaths: deaths since the service began.
        messages: what has happened since the last report; each is told once.
        statuses: what each worker has last published.
    """

    alive: int
    restarting: int
    given_up: int
    num_deaths: int
    messages: tuple[str, ...]
    statuses: tuple[WorkerStatus, ...]

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be drawn."""
        return self.alive == 0 and self.restarting == 0

    def total(self, name: str) -> float:
        """Return the sum of a number over the workers, such as ``accepted``, ``regions`` or ``idle_s``."""
        return sum(getattr(status, name) for status in self.statuses)

    def total_by_name(self, name: Literal["rejected", "stage_s"]) -> dict[str, float]:
        """Return the sums of a table over the workers: regions by rule, or seconds by stage."""
        sums: dict[str, float] = {}
        for status in self.statuses:
            for key, value in getattr(status, name).items():
                sums[key] = sums.get(key, 0) + value
        return sums


class WorkerPlace(Restarts):
    """One place for a worker: its process if it has one, and its deaths."""

    def __init__(self, spec: WorkerSpec, **restarts: Any):
        super().__init__(**restarts)
        self.spec = spec
        self.process: BaseProcess | None = None


class SynthesisService:
    """Starts one generator process per device and starts it again when it dies; never raises into training.

    ``start``, ``poll`` and ``stop`` belong to one thread that lives as long as the run: on Linux the workers
    die with the thread that started them. Build it with ``_recursive_: false``: planner and synthesizer are
    configs that each worker builds for itself. A ``low_water`` that is not below ``high_water`` is a
    ValueError, and so are bounds that would evict samples before they are used.

    Args:
        pool_dir: the pool folder that the workers append to.
        planner: config of the planner, with ``_target_``.
        synthesizer: config of the synthesizer, with ``_target_``; ``device: auto`` in it is the worker's own.
        devices: where the workers draw, one worker each, such as ``["cuda:1", "cuda:2"]`` or ``["cpu"]``.
        batch_size: requests that a worker draws at once.
        num_threads: CPU threads of each worker.
        nice: added to the workers' niceness.
        max_requests: requests of all workers together; None never ends.
        num_samples: samples of all workers together, exactly; None never ends.
        high_water: unused samples in the pool at which the workers pause; None never pauses.
        low_water: unused samples at which they go on; None means half of ``high_water``.
        max_samples: bound of the pool in samples.
        max_bytes: bound of the pool in bytes.
        when_full: at its bounds the oldest samples are dropped (``evict``), or drawing pauses (``stop``).
        image_format: of the images in the pool.
        min_free_bytes: room on the pool's disk at which drawing ends, so that training can go on.
        takes_turns: the trainer works on the same device and hands it over from time to time.
        max_restarts: how often each worker is started again.
        backoff_s: wait before the first restart, in seconds; doubled each time, at most a minute.
        stop_timeout_s: wait for a worker to end its batch at ``stop``, in seconds; then it is killed.
        capture_output: the workers write to ``worker-<name>.log`` in the pool folder, not to the terminal.
        without_worker: what a message says of the time after a worker that is given up.
    """

    _run = staticmethod(run_worker)

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        pool_dir: str | Path,
        planner: Any,
        synthesizer: Any,
        devices: Annotated[Sequence[str], Field(min_length=1)] = ("cpu",),
        batch_size: PositiveInt = 1,
        num_threads: PositiveInt = 1,
        nice: Annotated[int, Field(ge=0, le=19)] = 0,
        max_requests: PositiveInt | None = None,
        num_samples: PositiveInt | None = None,
        high_water: PositiveInt | None = None,
        low_water: Annotated[int, Field(ge=0)] | None = None,
        max_samples: PositiveInt | None = None,
        max_bytes: PositiveInt | None = None,
        when_full: WhenFull = "stop",
        image_format: Literal["jpeg", "png"] = "jpeg",
        min_free_bytes: Annotated[int, Field(ge=0)] = 0,
        takes_turns: bool = False,
        max_restarts: Annotated[int, Field(ge=0)] = 5,
        backoff_s: Annotated[float, Field(ge=0.0)] = 1.0,
        stop_timeout_s: Annotated[float, Field(ge=0.0)] = 10.0,
        capture_output: bool = True,
        without_worker: str = "training goes on while the pool has samples to use",
    ):
        check_marks(low_water, high_water, max_samples, when_full)
        self._folder, self._stop_timeout_s = Path(pool_dir), stop_timeout_s
        self._messages: list[str] = []
        pace = {"batch_size": batch_size, "num_threads": num_threads, "nice": nice}
        goals = {"max_requests": max_requests, "num_samples": num_samples}
        water = {"high_water": high_water, "low_water": low_water, "min_free_bytes": min_free_bytes}
        bounds = {"max_samples": max_samples, "max_bytes": max_bytes, "when_full": when_full}
        template = WorkerSpec(
            pool_dir=str(self._folder),
            writer_name="",
            planner=_plain(planner),
            synthesizer=_plain(synthesizer),
            num_workers=len(devices),
            image_format=image_format,
            takes_turns=takes_turns,
            capture_output=capture_output,
            **(pace | goals | water | bounds),
        )
        restarts = {"max_restarts": max_restarts, "backoff_s": backoff_s, "without_worker": without_worker}
        self._workers = [WorkerPlace(spec, **restarts) for spec in _assign(template, devices)]

    def category_frequencies(self, num_requests: int = 1000) -> dict[int, float]:
        """Return the share of the canvases that will show a class, by category_id, before any filter.

        Args:
            num_requests: canvases planned for the estimate; nothing is drawn.

        Returns:
            The shares, in (0, 1].
        """
        from hydra.utils import instantiate

        planner = instantiate(dict(self._workers[0].spec.planner), _convert_="all")
        counts = Counter(c for index in range(num_requests) for c in set(planner.request(index).category_ids))
        return {category_id: count / num_requests for category_id, count in counts.items()}

    def start(self) -> None:
        """Start the workers; they load their models while the caller goes on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for worker in self._workers:
            self._launch(worker)

    def poll(self) -> ServiceReport:
        """Look after the workers, start again those whose time has come, and tell what happened."""
        for worker in self._workers:
            self._look_after(worker)
        messages, self._messages = tuple(self._messages), []
        return ServiceReport(
            alive=sum(worker.process is not None for worker in self._workers),
            restarting=sum(worker.restart_at is not None for worker in self._workers),
            given_up=sum(worker.is_given_up for worker in self._workers),
            num_deaths=sum(worker.num_deaths for worker in self._workers),
            messages=messages,
            statuses=tuple(WorkerStatus.read(self._folder, w.spec.writer_name) for w in self._workers),
        )

    def stop(self) -> None:
        """End all workers: each may finish its batch, then it is killed. Leaves no process behind."""
        running = [worker for worker in self._workers if worker.process is not None]
        for worker in running:
            worker.process.terminate()
        deadline = time.monotonic() + self._stop_timeout_s
        for worker in running:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
            worker.process = None
        for worker in self._workers:
            worker.restart_at = None

    def __enter__(self) -> "SynthesisService":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _look_after(self, worker: WorkerPlace) -> None:
        if worker.process is not None and not worker.process.is_alive():
            exit_code, pid = worker.process.exitcode, worker.process.pid
            worker.process.close()
            worker.process = None
            self._note_end(worker, exit_code, pid)
        if worker.is_due:
            self._launch(worker)

    def _launch(self, worker: WorkerPlace) -> None:
        worker.restart_at = None
        spec = replace(worker.spec, parent_pid=os.getpid())
        process = multiprocessing.get_context("spawn").Process(
            target=self._run, args=(spec,), name=f"mflight-{spec.writer_name}", daemon=True
        )
        try:
            with environment(thread_settings(spec.num_threads)):
                process.start()
        except Exception as error:
            self._note_death(worker, f"could not be started ({type(error).__name__}: {error})")
        else:
            worker.process = process

    def _note_end(self, worker: WorkerPlace, exit_code: int, pid: int) -> None:
        status = WorkerStatus.read(self._folder, worker.spec.writer_name)
        said = f": {status.message}" if status.pid == pid and status.message else ""
        if exit_code == 0 and status.state == "done":
            logger.info("%s has answered all of its requests", self._name(worker))
        elif exit_code == 0:
            self._note_death(worker, "was told to stop by somebody else")
        elif exit_code == EXIT_DISK_FULL:
            worker.is_given_up = True
            self._tell(f"{self._name(worker)} stops because the disk is full{said}; {worker.without_worker}")
        elif exit_code == EXIT_SETTINGS:
            worker.is_given_up = True
            self._tell(f"{self._name(worker)} cannot draw as it is set{said}; {worker.without_worker}")
        elif exit_code < 0:
            self._note_death(worker, f"was killed by {signal.Signals(-exit_code).name}{said}")
        else:
            said = said or last_words(log_path(self._folder, worker.spec.writer_name))
            self._note_death(worker, f"ended with code {exit_code}{said}")

    def _note_death(self, worker: WorkerPlace, what: str) -> None:
        self._tell(f"{self._name(worker)} {worker.note_death(what)}")

    def _name(self, worker: WorkerPlace) -> str:
        return f"generator {worker.spec.writer_name}"

    def _tell(self, message: str) -> None:
        logger.warning(message)
        self._messages.append(message)


def _assign(template: WorkerSpec, devices: Sequence[str]) -> list[WorkerSpec]:
    """Return what the worker on each device does."""
    return [
        replace(template, writer_name=f"w{n}", worker_index=n, device=name) for n, name in enumerate(devices)
    ]


def _plain(config: Any) -> Mapping[str, Any]:
    """Return a config as plain data, which travels to another process."""
    if isinstance(config, DictConfig):
        return OmegaConf.to_container(config, resolve=True)
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise ValueError(f"expected a config with '_target_' (set _recursive_: false), got {config!r:.80}")
    return dict(config)
