"""Taking turns on one device: whoever holds a lock file works, the other side waits. No torch."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

_POLL_S = 0.005


class Turns:
    """A generator and a trainer that share a device never work on it at the same moment.

    The trainer holds the device and hands it over from time to time; a generator takes it for one batch. The
    kernel frees the lock when its holder dies, however it dies, so nobody waits for a dead process.

    Args:
        folder: the pool folder.
    """

    def __init__(self, folder: str | Path):
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(Path(folder) / "device.lock", os.O_RDWR | os.O_CREAT, 0o644)

    def take(self) -> None:
        """Wait for the device and hold it."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def give(self) -> None:
        """Let the other side have it."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the device for the length of a block; the other side sees that a turn has begun."""
        self.take()
        os.pwrite(self._descriptor, (self._num_turns() + 1).to_bytes(8), 0)
        try:
            yield
        finally:
            self.give()

    def hand_over(self, patience_s: float) -> float:
        """Let the other side have one turn, and take the device back after it.

        Args:
            patience_s: how long the other side may take to begin, in seconds; one that is still loading,
                paused or dead does not begin.

        Returns:
            Seconds until the device was back.
        """
        started, before = time.monotonic(), self._num_turns()
        self.give()
        while self._num_turns() == before and time.monotonic() - started < patience_s:
            time.sleep(_POLL_S)
        self.take()
        return time.monotonic() - started

    def close(self) -> None:
        """Let the other side have the device for good."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _num_turns(self) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, 0))
