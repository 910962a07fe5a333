"""The main function of a generator process: plan, draw, label, append, until told to stop.

Nothing here imports torch before the process has set its threads; the classes named in the config do.
"""

import contextlib
import ctypes
import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from mflight.mistakes import tell
from mflight.synthesis.pool.agenda import Agenda
from mflight.synthesis.pool.eviction import bounded_shard
from mflight.synthesis.pool.folder import PoolWriter
from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.pool.throttle import Throttle, WhenFull
from mflight.synthesis.shortages import check_room, is_disk_full
from mflight.synthesis.shrinking_batches import ShrinkingBatches
from mflight.synthesis.turns import Turns

logger = logging.getLogger(__name__)

EXIT_DISK_FULL = errno.ENOSPC
EXIT_SETTINGS = 78  # EX_CONFIG of sysexits.h
_POLL_S = 0.2
_PR_SET_PDEATHSIG = 1


class UnfitSettingsError(Exception):
    """What a worker was asked for cannot be built, now or the next time; its text is the sentence."""


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs, as plain data that travels to a spawned process.

    Attributes:
        pool_dir: the pool folder.
        writer_name: name of the worker's series in the pool; one living worker a name.
        planner: config of the planner, with ``_target_``.
        synthesizer: config of the synthesizer, with ``_target_``; a value ``auto`` under a key ``device``
            becomes this worker's device.
        worker_index: w of W; the worker takes the blocks w, w + W, ... of ``batch_size`` requests each.
        num_workers: W.
        batch_size: requests drawn at once; halved when the device's memory does not suffice.
        num_threads: CPU threads of this process.
        device: where it draws, such as ``cuda:1`` or ``cpu``.
        nice: added to the process's niceness.
        max_requests: requests are answered up to this index, then the worker is done; None never ends.
        num_samples: requests are answered until this many of them have given samples; None never ends.
        high_water: unused samples at which all workers pause; None never pauses.
        low_water: unused samples at which they go on; None means half of ``high_water``.
        max_samples: bound of the pool in samples.
        max_bytes: bound of the pool in bytes.
        when_full: at its bounds the oldest samples are dropped (``evict``), or drawing pauses (``stop``).
        image_format: of the images in the pool.
        min_free_bytes: drawing ends, as on a full disk, when the pool's disk has less room than this.
        takes_turns: the trainer works on the same device; draw only while holding it.
        parent_pid: the worker ends when this is not its parent any more; 0 does not look.
        capture_output: write standard output and error to ``worker-<writer>.log`` in the pool folder.
    """

    pool_dir: str
    writer_name: str
    planner: Mapping[str, Any]
    synthesizer: Mapping[str, Any]
    worker_index: int = 0
    num_workers: int = 1
    batch_size: int = 1
    num_threads: int = 1
    device: str = "cpu"
    nice: int = 0
    max_requests: int | None = None
    num_samples: int | None = None
    high_water: int | None = None
    low_water: int | None = None
    max_samples: int | None = None
    max_bytes: int | None = None
    when_full: WhenFull = "stop"
    image_format: Literal["jpeg", "png"] = "jpeg"
    min_free_bytes: int = 0
    takes_turns: bool = False
    parent_pid: int = 0
    capture_output: bool = True


def run_worker(spec: WorkerSpec) -> None:
    """Draw until told to stop; end with 0, or after an error with 1 or the number of its kind.

    The numbers are ``EXIT_DISK_FULL`` and ``EXIT_SETTINGS``, of what cannot be built as it is configured.
    SIGTERM ends it between two batches, SIGINT is left to the parent, and the parent's death ends it at once.

    Args:
        spec: what to draw, where, and how fast.
    """
    run_writer(spec, _Worker)


def run_writer(spec: WorkerSpec, build: Callable[[WorkerSpec, PoolWriter, WorkerStatus], Any]) -> None:
    """Run a process that appends to the pool, as ``run_worker`` does; ``build`` gives what has a ``run``."""
    _settle(spec)
    try:
        shard = {}
        if spec.when_full == "evict":
            shard = bounded_shard(spec.num_workers, spec.max_samples, spec.max_bytes)
        with PoolWriter(spec.pool_dir, spec.writer_name, image_format=spec.image_format, **shard) as writer:
            _work(spec, writer, build)
    except Exception as error:
        if is_disk_full(error):
            if spec.capture_output:
                # The log lies on that disk: what it cannot take would change the exit code.
                _redirect_output(os.devnull)
            sys.exit(EXIT_DISK_FULL)
        traceback.print_exc()
        sys.exit(EXIT_SETTINGS if isinstance(error, UnfitSettingsError) else 1)


def _work(spec: WorkerSpec, writer: PoolWriter, build: Callable) -> None:
    """Draw, and leave a word in the status file when it ends by an error."""
    folder = Path(spec.pool_dir)
    status = WorkerStatus.read(folder, spec.writer_name)
    status.pid, status.message = os.getpid(), ""
    try:
        build(spec, writer, status).run()
    except Exception as error:
        status.state = "disk_full" if is_disk_full(error) else "failed"
        is_told = isinstance(error, UnfitSettingsError)
        status.message = f"{error}" if is_told else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            status.write(folder)
        raise


class _Worker:
    def __init__(self, spec: WorkerSpec, writer: PoolWriter, status: WorkerStatus):
        self._spec, self._writer, self._status = spec, writer, status
        self._folder = Path(spec.pool_dir)
        self._is_told_to_stop = False
        self._turns = Turns(self._folder) if spec.takes_turns else None
        self._throttle = Throttle(
            self._folder,
            high_water=spec.high_water,
            low_water=spec.low_water,
            max_samples=spec.max_samples,
            max_bytes=spec.max_bytes,
            when_full=spec.when_full,
            num_workers=spec.num_workers,
            batch_size=spec.batch_size,
        )
        self._batches = ShrinkingBatches(None, spec.batch_size)
        self._publish("loading")
        self._planner, synthesizer = _build(spec)
        self._batches = ShrinkingBatches(synthesizer, spec.batch_size, turns=self._turns)
        with contextlib.suppress(ValueError):  # in a thread of a test or notebook there is no signal to take
            signal.signal(signal.SIGTERM, self._stop)

    def run(self) -> None:
        """Answer requests until they end, or until told to stop."""
        agenda = Agenda(
            self._throttle,
            self._planner.request_id,
            worker_index=self._spec.worker_index,
            num_workers=self._spec.num_workers,
            block_size=self._spec.batch_size,
            max_requests=self._spec.max_requests,
            num_samples=self._spec.num_samples,
        )
        while not agenda.is_done() and self._may_go_on():
            if not (batch := agenda.take(self._batches.batch_size)):
                time.sleep(_POLL_S)
                continue
            check_room(self._folder, self._spec.min_free_bytes)
            started = time.monotonic()
            for result in self._batches.draw([self._planner.request(index) for index in batch]):
                self._keep(result)
            self._status.busy_s += time.monotonic() - started
            self._publish("drawing")
        self._publish("stopped" if self._is_told_to_stop or self._is_orphan() else "done")

    def _may_go_on(self) -> bool:
        """Wait while the pool has enough; return False when it is time to stop."""
        while not self._is_told_to_stop and not self._is_orphan():
            state = self._throttle.pause()
            if state is None:
                return True
            if state != self._status.state:
                self._publish(state)
            started = time.monotonic()
            time.sleep(_POLL_S)
            self._status.idle_s += time.monotonic() - started
        return False

    def _keep(self, result: Any) -> None:
        request, sample = result.request, result.sample()
        if sample is None:
            self._writer.drop(request.request_id, result.regions, index=request.index)
        else:
            self._writer.append(sample, index=request.index)
        for stage, seconds in result.seconds.items():
            self._status.stage_s[stage] = self._status.stage_s.get(stage, 0.0) + seconds

    def _publish(self, state: str) -> None:
        status = self._status
        status.state, status.batch_size = state, self._batches.batch_size
        status.take_counts(self._writer.counts)
        status.write(self._folder)

    def _is_orphan(self) -> bool:
        return self._spec.parent_pid not in (0, os.getppid())

    def _stop(self, *_: object) -> None:
        self._is_told_to_stop = True


def _settle(spec: WorkerSpec) -> None:
    """Make this process a quiet child: own log, own priority, no keyboard, no life after its parent's."""
    if spec.parent_pid:
        _die_with_parent()
        if os.getppid() != spec.parent_pid:
            sys.exit(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if spec.capture_output:
        Path(spec.pool_dir).mkdir(parents=True, exist_ok=True)
        _redirect_output(log_path(spec.pool_dir, spec.writer_name))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if spec.nice:
        os.nice(spec.nice)


def _redirect_output(path: str | Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _die_with_parent() -> None:
    """Ask the kernel, where it can, for SIGKILL at the parent's death: the pool survives any kill."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _build(spec: WorkerSpec) -> tuple[Any, Any]:
    """Build planner and synthesizer from their configs; only what they name imports torch."""
    if spec.device.startswith("cuda"):
        import torch

        torch.cuda.set_device(spec.device)
    try:
        planner = instantiate(dict(spec.planner), _convert_="all")
        synthesizer = instantiate(fill_device(spec.synthesizer, spec.device), _convert_="all")
    except Exception as error:
        if _may_pass(error):
            raise
        raise UnfitSettingsError(tell(error)) from error
    if torch := sys.modules.get("torch"):  # the environment set its threads at the start; this makes sure
        torch.set_num_threads(spec.num_threads)
    return planner, synthesizer


def _may_pass(error: BaseException) -> bool:
    """Return whether an error of building is the machine's (memory, disk, network), not a setting's."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    is_of_disk = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return is_of_disk or isinstance(error, RuntimeError | MemoryError)


def fill_device(config: Any, device: str) -> Any:
    """Return a config in which every ``device: auto`` names ``device``."""
    if isinstance(config, Mapping):
        return {
            key: device if (key, value) == ("device", "auto") else fill_device(value, device)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [fill_device(value, device) for value in config]
    return config


def log_path(pool_dir: str | Path, writer_name: str) -> Path:
    """Return where a worker's output goes."""
    return Path(pool_dir) / f"worker-{writer_name}.log"
