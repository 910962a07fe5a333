"""One process that is started again when it dies, and what is told of its ends. No torch."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess

from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.process_start import environment, last_words, thread_settings
from mflight.synthesis.restarts import Restarts
from mflight.synthesis.worker import EXIT_DISK_FULL, EXIT_GIVEN_UP, EXIT_SETTINGS, WorkerSpec

logger = logging.getLogger(__name__)


class ProcessKeeper(Restarts):
    """Keeps one process that writes to the pool alive: starts it, looks after it, stops it.

    Args:
        run: main function of the process.
        spec: what it is told; ``parent_pid`` is filled in.
        name: what messages call it.
    """

    def __init__(self, run: Callable[[WorkerSpec], None], spec: WorkerSpec, *, name: str):
        settings = spec.settings
        super().__init__(
            max_restarts=settings.max_restarts,
            backoff_s=settings.backoff_s,
            without_worker=settings.without_worker,
        )
        self._run, self._spec, self._name = run, spec, name
        self._messages: list[str] = []
        self.process: BaseProcess | None = None

    @property
    def status(self) -> WorkerStatus:
        """What the process has last published."""
        return WorkerStatus.read(self._spec.settings.pool_dir, self._spec.writer_name)

    def start(self) -> None:
        """Start the process; it loads its models while the caller goes on."""
        self.restart_at = None
        spec = replace(self._spec, parent_pid=os.getpid())
        process = multiprocessing.get_context("spawn").Process(
            target=self._run, args=(spec,), name=f"mflight-{spec.writer_name}", daemon=True
        )
        try:
            with environment(thread_settings(spec.settings.num_threads)):
                process.start()
        except Exception as error:
            self._note_death(f"could not be started ({type(error).__name__}: {error})")
        else:
            self.process = process

    def look_after(self) -> list[str]:
        """Start it again if its time has come; return what has happened since the last call."""
        if self.process is not None and not self.process.is_alive():
            exit_code, pid = self.process.exitcode, self.process.pid
            self.process.close()
            self.process = None
            self._note_end(exit_code, pid)
        if self.is_due:
            self.start()
        messages, self._messages = self._messages, []
        return messages

    def _note_end(self, exit_code: int, pid: int) -> None:
        status = self.status
        said = f": {status.message}" if status.pid == pid and status.message else ""
        if exit_code == 0 and status.state == "done":
            logger.info("%s has answered all of its requests", self._name)
        elif exit_code == 0:
            self._note_death("was told to stop by somebody else")
        elif exit_code == EXIT_DISK_FULL:
            self._give_up(f"stops because the disk is full{said}")
        elif exit_code == EXIT_SETTINGS:
            self._give_up(f"cannot draw as it is set{said}")
        elif exit_code == EXIT_GIVEN_UP:  # what led to it has been told
            self.is_given_up = True
        elif exit_code < 0:
            self._note_death(f"was killed by {signal.Signals(-exit_code).name}{said}")
        else:
            said = said or last_words(self._spec.log_file)
            self._note_death(f"ended with code {exit_code}{said}")

    def _give_up(self, why: str) -> None:
        self.is_given_up = True
        self._tell(f"{why}; {self.without_worker}")

    def _note_death(self, what: str) -> None:
        self._tell(self.note_death(what))

    def _tell(self, what: str) -> None:
        logger.warning("%s %s", self._name, what)
        self._messages.append(f"{self._name} {what}")


def stop_processes(keepers: Sequence[ProcessKeeper], timeout_s: float) -> None:
    """End all processes: each may finish its batch, then it is killed. Leaves none behind.

    Args:
        keepers: of the processes; none of them starts its process again.
        timeout_s: wait for all of them together, in seconds.
    """
    running = [keeper.process for keeper in keepers if keeper.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + timeout_s
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
    for keeper in keepers:
        keeper.process = keeper.restart_at = None
