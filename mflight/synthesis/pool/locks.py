"""Locks of a pool folder; the kernel frees each when its process dies, however it dies. No torch."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mflight.synthesis.pool.index import PoolError


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
        self._descriptor = os.open(_lock_path(folder, writer_name), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _take_lock(self._descriptor, folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                owner = os.pread(self._descriptor, 200, 0).decode(errors="replace") or "an unknown process"
                raise PoolError(
                    f"pool writer {writer_name!r} is in use by {owner}; every writer needs a name of its own"
                )
        except PoolError:
            self.release()
            raise
        owner = f"pid {os.getpid()} on {socket.gethostname()}"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner.encode(), 0)

    def release(self) -> None:
        """Let another writer take the series over."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def hold_pool(folder: Path) -> Iterator[None]:
    """Let one process at a time open a series; a file system without locks is a ``PoolError``."""
    descriptor = os.open(folder / "pool.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take_lock(descriptor, folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_being_written(folder: Path, writer_name: str) -> bool:
    """Return whether a living writer holds a series."""
    try:
        descriptor = os.open(_lock_path(folder, writer_name), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _take_lock(descriptor, folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except PoolError:  # without locks nobody can hold it
        return False
    finally:
        os.close(descriptor)


def _lock_path(folder: Path, writer_name: str) -> Path:
    return folder / f"writer-{writer_name}.lock"


def _take_lock(descriptor: int, folder: Path, kind: int) -> bool:
    """Lock an open file; False if somebody else has it, a ``PoolError`` if the file system gives no locks."""
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
