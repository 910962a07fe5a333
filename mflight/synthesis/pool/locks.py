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
        PoolError: if another writer, here or in another process, holds the series, or if the file system has
            no locks.
    """

    def __init__(self, folder: Path, writer_name: str):
        path = folder / f"writer-{writer_name}.lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            is_free = take_lock(self._descriptor, folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except PoolError:
            os.close(self._descriptor)
            raise
        if not is_free:
            owner = os.pread(self._descriptor, 200, 0).decode(errors="replace") or "an unknown process"
            os.close(self._descriptor)
            raise PoolError(
                f"pool writer {writer_name!r} is in use by {owner}; every writer needs a name of its own"
            )
        owner = f"pid {os.getpid()} on {socket.gethostname()}"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner.encode(), 0)

    def release(self) -> None:
        """Let another writer take the series over."""
        os.close(self._descriptor)


@contextlib.contextmanager
def hold_pool(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Keep evictions, and the opening of a series, to one process at a time.

    A file system without locks is a ``PoolError``.

    Args:
        folder: the pool folder.
        wait: wait for the process that holds it.

    Yields:
        Whether it is held; False only without ``wait``.
    """
    descriptor = os.open(folder / "pool.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield take_lock(descriptor, folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, folder: Path, kind: int) -> bool:
    """Lock an open file.

    Args:
        descriptor: of the file.
        folder: where it lies, for the message.
        kind: as ``fcntl.flock`` takes it.

    Returns:
        Whether it is locked; False if somebody else has it.

    Raises:
        PoolError: if it cannot be locked for any other reason: such a file system cannot keep writers apart.
    """
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        raise PoolError(
            f"paths.pool_dir={folder} lies on a file system that gives no locks (flock: {error.strerror}): "
            "name a folder on another one, or mount this one with locks"
        ) from error
    return True
