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
        """Hold the device for the length of a block."""
        self.take()
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
        started = time.monotonic()
        self.give()
        while time.monotonic() - started < patience_s:
            time.sleep(_POLL_S)
            if not self._try_to_take():
                break  # the other side has begun
            self.give()
        self.take()
        return time.monotonic() - started

    def close(self) -> None:
        """Let the other side have the device for good."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _try_to_take(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
