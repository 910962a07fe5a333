"""Dropping whole shards to make room, and the log that keeps what they answered. No torch.

A line of ``evicted.jsonl`` is on disk before the shard's files go, so a request that it answered is never
drawn again, and a kill in between leaves files that the next writer removes. Who evicts holds the pool
(``locks.hold_pool``).
"""

import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from mflight.synthesis.pool.locks import SeriesLock
from mflight.synthesis.pool.shards import (
    DroppedLine,
    EvictedLine,
    IndexLine,
    PoolError,
    SampleLine,
    complete_lines,
    encode_line,
    fsync_folder,
    index_path,
    parse_lines,
    shard_path,
    split_index_name,
    write_all,
)

logger = logging.getLogger(__name__)

LOG_NAME = "evicted.jsonl"
_BLOCK_BYTES = 1 << 20
_decode_evicted = msgspec.json.Decoder(EvictedLine).decode


class EvictionLog:
    """Follows the log of a pool's evictions; a line that is not of it is told once and passed over.

    Args:
        folder: the pool folder; neither it nor the log need be there yet.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOG_NAME
        self._position = 0
        self.set_aside: dict[str, str] = {}

    def read_new(self) -> Iterator[EvictedLine]:
        """Yield the lines completed since the last call, a block at a time."""
        try:
            with open(self._path, "rb") as file:
                if os.fstat(file.fileno()).st_size <= self._position:
                    return
                file.seek(self._position)
                while raw := self._read_block(file):
                    for text in raw.splitlines():
                        yield from self._decode(text)
                    self._position += len(raw)
        except FileNotFoundError:
            return

    def _read_block(self, file: BinaryIO) -> bytes:
        raw = file.read(_BLOCK_BYTES)
        while b"\n" not in raw and (more := file.read(_BLOCK_BYTES)):
            raw += more
        whole = complete_lines(raw)
        file.seek(len(whole) - len(raw), os.SEEK_CUR)
        return whole

    def _decode(self, text: bytes) -> Iterator[EvictedLine]:
        try:
            yield _decode_evicted(text)
        except msgspec.DecodeError as error:
            start = text[:60].decode(errors="replace")
            if start not in self.set_aside:
                self.set_aside[start] = f"{LOG_NAME}: a line is not a pool's ({error}): {start!r}"
                logger.warning("set aside in the pool: %s", self.set_aside[start])


def evict_shard(index: Path, *, is_sealed: bool) -> bool:
    """Drop one shard. The caller holds the pool.

    Args:
        index: the shard's index file.
        is_sealed: whether it will not grow any more; else it is dropped only if no living writer has it.

    Returns:
        Whether it is gone. An ``OSError`` tells that the disk refused; the shard is then as it was, or its
        line is in the log and the next writer removes it.
    """
    if is_sealed:
        _drop(index)
        return True
    try:
        lock = SeriesLock(index.parent, split_index_name(index.name)[0])
    except PoolError:
        return False
    try:
        _drop(index)
    finally:
        lock.release()
    return True


def remove_leftovers(folder: Path, evicted: EvictedLine, names: Collection[str]) -> None:
    """Remove the files of a shard that a kill has left behind in mid-eviction. The caller holds the pool.

    Args:
        folder: the pool folder.
        evicted: what the log says of the shard.
        names: of the files in the folder.
    """
    index = index_path(folder, evicted.writer, evicted.number)
    if index.name in names or shard_path(index).name in names:
        _unlink(index)


def summarise(index: Path) -> EvictedLine:
    """Return what a shard's eviction leaves of it; samples whose bytes are gone do not count."""
    writer, number = split_index_name(index.name)
    tar = shard_path(index)
    tar_bytes = tar.stat().st_size if tar.exists() else 0
    lines = [
        line
        for line in _readable_lines(index)
        if not isinstance(line, SampleLine) or line.offset + line.size <= tar_bytes
    ]
    samples = {line.sample_id: line for line in lines if isinstance(line, SampleLine)}
    dropped = {line.sample_id: line for line in lines if isinstance(line, DroppedLine)}
    rejected: dict[str, int] = {}
    for line in (*samples.values(), *dropped.values()):
        for rule, count in line.rejected.items():
            rejected[rule] = rejected.get(rule, 0) + count
    return EvictedLine(
        writer=writer,
        number=number,
        size_bytes=sum(line.size for line in samples.values()),
        num_regions=sum(line.num_regions for line in (*samples.values(), *dropped.values())),
        rejected=rejected,
        sample_ids=tuple(samples),
        dropped_ids=tuple(dropped),
    )


def _readable_lines(index: Path) -> list[IndexLine]:
    try:
        return parse_lines(complete_lines(index.read_bytes()), index, with_header=True)
    except PoolError as error:
        logger.warning("a damaged shard is evicted; its requests may be drawn again: %s", error)
        return []


def _drop(index: Path) -> None:
    _append_to_log(index.parent, encode_line(summarise(index)))
    _unlink(index)


def _unlink(index: Path) -> None:
    index.unlink(missing_ok=True)  # first: a shard without an index does not exist for a reader
    shard_path(index).unlink(missing_ok=True)


def _append_to_log(folder: Path, text: bytes) -> None:
    descriptor = os.open(folder / LOG_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = _cut_torn_end(descriptor)
        try:
            write_all(descriptor, text)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if size == 0:
        fsync_folder(folder)


def _cut_torn_end(descriptor: int) -> int:
    """Cut what a kill in mid-write has left, and return the size in bytes."""
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def bounded_shard(num_writers: int, max_samples: int | None, max_bytes: int | None) -> dict[str, int]:
    """Return the shard settings of ``PoolWriter`` under which a bounded pool always has shards to drop.

    The newest shard of a writer cannot be dropped; all of these together may hold a quarter of the pool.

    Args:
        num_writers: writers of the pool.
        max_samples: bound of the pool in samples; None has no bound.
        max_bytes: bound of the pool in bytes; None has no bound.

    Returns:
        ``shard_samples`` and ``shard_bytes``, each where there is a bound and no larger than the default.
    """
    shard = {}
    if max_samples is not None:
        shard["shard_samples"] = min(1000, max(1, max_samples // (4 * num_writers)))
    if max_bytes is not None:
        shard["shard_bytes"] = min(256 * 2**20, max(1, max_bytes // (4 * num_writers)))
    return shard
