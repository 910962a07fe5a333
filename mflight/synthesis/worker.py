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
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from mflight.mistakes import tell
from mflight.synthesis.generator_settings import GeneratorSettings
from mflight.synthesis.pool.agenda import Agenda
from mflight.synthesis.pool.index import PoolIndex
from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.pool.throttle import Throttle, bounded_shard
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.shortages import check_room, is_disk_full
from mflight.synthesis.shrinking_batches import ShrinkingBatches
from mflight.synthesis.turns import Turns

logger = logging.getLogger(__name__)

EXIT_DISK_FULL = errno.ENOSPC
EXIT_GIVEN_UP = 64
EXIT_SETTINGS = 78  # EX_CONFIG of sysexits.h
_POLL_S = 0.2
_PR_SET_PDEATHSIG = 1


class UnfitSettingsError(Exception):
    """What a worker was asked for cannot be built, now or the next time; its text is the sentence."""


@dataclass(frozen=True)
class WorkerSpec:
    """What one generator process is told.

    Attributes:
        settings: of all generators.
        index: of this one: the number of its device.
        parent_pid: it ends when this is not its parent any more; 0 does not look.
    """

    settings: GeneratorSettings
    index: int = 0
    parent_pid: int = 0

    @property
    def writer_name(self) -> str:
        """Name of its series in the pool; one living worker a name."""
        return f"w{self.index}"

    @property
    def log_file(self) -> Path:
        """Where its output goes if it is captured."""
        return self.settings.pool_dir / f"worker-{self.writer_name}.log"


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
    settings = spec.settings
    shard = {"image_format": settings.image_format}
    try:
        if settings.when_full == "evict":
            shard |= bounded_shard(len(settings.devices), settings.max_samples, settings.max_bytes)
        with PoolWriter(settings.pool_dir, spec.writer_name, **shard) as writer:
            _work(spec, writer, build)
    except Exception as error:
        if is_disk_full(error):
            if settings.capture_output:
                # The log lies on that disk: what it cannot take would change the exit code.
                _redirect_output(os.devnull)
            sys.exit(EXIT_DISK_FULL)
        traceback.print_exc()
        sys.exit(EXIT_SETTINGS if isinstance(error, UnfitSettingsError) else 1)


def _work(spec: WorkerSpec, writer: PoolWriter, build: Callable) -> None:
    """Draw, and leave a word in the status file when it ends by an error."""
    folder = spec.settings.pool_dir
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
        self._settings = settings = spec.settings
        self._is_told_to_stop = False
        turns = Turns(settings.pool_dir) if settings.takes_turns else None
        self._throttle = build_throttle(settings, writer.index)
        self._batches = ShrinkingBatches(None, settings.batch_size)
        self._publish("loading")
        self._planner, synthesizer = _build(settings, settings.devices[spec.index])
        self._batches = ShrinkingBatches(synthesizer, settings.batch_size, turns=turns)
        with contextlib.suppress(ValueError):  # in a thread of a test or notebook there is no signal to take
            signal.signal(signal.SIGTERM, self._stop)

    def run(self) -> None:
        """Answer requests until they end, or until told to stop."""
        agenda = Agenda(
            self._writer.index,
            self._planner.request_id,
            worker_index=self._spec.index,
            num_workers=len(self._settings.devices),
            block_size=self._settings.batch_size,
            max_requests=self._settings.max_requests,
            num_samples=self._settings.num_samples,
        )
        while not agenda.is_done() and self._may_go_on():
            if not (batch := agenda.take(self._batches.batch_size)):
                time.sleep(_POLL_S)
                continue
            check_room(self._settings.pool_dir, self._settings.min_free_bytes)
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
        status.write(self._settings.pool_dir)

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
    if spec.settings.capture_output:
        spec.settings.pool_dir.mkdir(parents=True, exist_ok=True)
        _redirect_output(spec.log_file)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if spec.settings.nice:
        os.nice(spec.settings.nice)


def _redirect_output(path: str | Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _die_with_parent() -> None:
    """Ask the kernel, where it can, for SIGKILL at the parent's death: the pool survives any kill."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def build_throttle(settings: GeneratorSettings, index: PoolIndex) -> Throttle:
    """Return what pauses drawing, given the index of the pool."""
    return Throttle(
        index,
        high_water=settings.high_water,
        low_water=settings.low_water,
        max_samples=settings.max_samples,
        max_bytes=settings.max_bytes,
        when_full=settings.when_full,
    )


def _build(settings: GeneratorSettings, device: str) -> tuple[Any, Any]:
    """Build planner and synthesizer from their configs; only what they name imports torch."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.set_device(device)
    planner = build_part(settings.planner)
    synthesizer = build_part(fill_device(settings.synthesizer, device))
    if torch := sys.modules.get("torch"):  # the environment set its threads at the start; this makes sure
        torch.set_num_threads(settings.num_threads)
    return planner, synthesizer


def build_part(config: Mapping[str, Any]) -> Any:
    """Build what a config with ``_target_`` names; what it can never be raises ``UnfitSettingsError``."""
    try:
        return instantiate(dict(config), _convert_="all")
    except Exception as error:
        if _may_pass(error):
            raise
        raise UnfitSettingsError(tell(error)) from error


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
