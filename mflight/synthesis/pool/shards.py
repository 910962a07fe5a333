"""The tar shards of a pool: what is in them, and where. No torch, no pickle.

A writer appends to a series of shards ``shard-<writer>-<number>.tar`` of its own. Whoever opens a series
begins a new shard behind all that are there, so none is ever written to by two.
"""

import contextlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from mflight.synthesis.pool.index import PoolError

_SHARD_NAME = re.compile(r"^shard-(?P<writer>[A-Za-z0-9_-]+)-(?P<number>\d{5,})\.tar$")


class Shard:
    """One tar file that a writer appends to.

    Args:
        folder: the pool folder.
        writer_name: whose series it belongs to.
        number: its place in the series; no file has it yet.
    """

    def __init__(self, folder: Path, writer_name: str, number: int):
        self.size_bytes = self.num_samples = 0
        self.name = f"shard-{writer_name}-{number:05d}.tar"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._descriptor = os.open(folder / self.name, flags, 0o644)
        _fsync_folder(folder)

    def append(self, span: bytes) -> int:
        """Put a sample's members on disk, and return their offset in bytes; or none of them (OSError)."""
        offset = self.size_bytes
        try:
            view = memoryview(span)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError:
            self.cut(offset)
            raise
        self.size_bytes += len(span)
        self.num_samples += 1
        return offset

    def cut(self, offset: int) -> None:
        """Take back what was appended behind an offset."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, offset)
        self.num_samples -= self.size_bytes > offset
        self.size_bytes = offset

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def split_shard_name(name: str) -> tuple[str, int] | None:
    """Return writer and number of a shard, or None if this is not the name of one."""
    match = _SHARD_NAME.match(name)
    return (match["writer"], int(match["number"])) if match else None


def whole_samples(path: Path, start: int) -> Iterator[tuple[int, str, bytes]]:
    """Yield offset, name and bytes of each pair of tar members from a byte on, up to the first torn one."""
    size = path.stat().st_size
    with path.open("rb") as file, contextlib.suppress(tarfile.TarError):
        file.seek(start)
        archive = tarfile.open(fileobj=file, mode="r:")
        while (first := archive.next()) and archive.next() and archive.offset <= size:
            span = os.pread(file.fileno(), archive.offset - first.offset, first.offset)
            yield first.offset, os.path.splitext(first.name)[0], span


def begins_torn(path: Path, offset: int) -> bool:
    """Return whether the bytes at an offset can be the begin of a sample that was not written to its end."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or not any(block):
        return True
    try:
        tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        return False
    return True


def read_span(path: Path, offset: int, size: int, crc32: int) -> bytes:
    """Read one sample's span of a shard and check it against the checksum that the index gave.

    Args:
        path: the tar shard.
        offset: start of the span, in bytes.
        size: length of the span, in bytes.
        crc32: checksum of the span.

    Returns:
        ``size`` bytes: the sample's tar members with their headers and padding.

    Raises:
        PoolError: if the shard is missing or shorter than the span, or if the checksum differs.
    """
    try:
        with path.open("rb") as file:
            span = os.pread(file.fileno(), size, offset)
    except FileNotFoundError as error:
        raise PoolError(f"{path.name}: missing, the index speaks of {size} bytes at {offset}") from error
    if len(span) != size:
        raise PoolError(f"{path.name}: torn, {len(span)} of {size} bytes are left at {offset}")
    if (found := zlib.crc32(span)) != crc32:
        raise PoolError(f"{path.name}: checksum {found:08x} at {offset}, the index says {crc32:08x}")
    return span


def _fsync_folder(folder: Path) -> None:
    """Put the folder's own entries on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
