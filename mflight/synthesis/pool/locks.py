"""Locks of a pool folder; the kernel frees each when its process dies, however it dies. No torch."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mflight.synthesis.pool.shards import PoolError


class SeriesLock:
    """Keeps a series to one living writer.

    Args:
        folder: the pool folder.
        writer_name: whose series it is.

    Raises:
        PoolError: if another writer, here or in another process, holds the series.
    """

    def __init__(self, folder: Path, writer_name: str):
        path = folder / f"writer-{writer_name}.lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._descriptor, 200, 0).decode(errors="replace") or "an unknown process"
            os.close(self._descriptor)
            raise PoolError(
                f"pool writer {writer_name!r} is in use by {owner}; every writer needs a name of its own"
            ) from error
        owner = f"pid {os.getpid()} on {socket.gethostname()}"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner.encode(), 0)

    def release(self) -> None:
        """Let another writer take the series over."""
        os.close(self._descriptor)


@contextlib.contextmanager
def hold_pool(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Keep evictions, and the opening of a series, to one process at a time.

    Args:
        folder: the pool folder.
        wait: wait for the process that holds it.

    Yields:
        Whether it is held; False only without ``wait``.
    """
    descriptor = os.open(folder / "pool.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _is_locked(descriptor, wait)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
