"""One writer's series of shards: exclusive, append-only, and whole again after any kill. No torch."""

import contextlib
import logging
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mflight.synthesis.pool.eviction import EvictionLog, remove_leftovers
from mflight.synthesis.pool.locks import SeriesLock, hold_pool
from mflight.synthesis.pool.packing import begins_with_whole_member
from mflight.synthesis.pool.shards import (
    FORMAT_NAME,
    FORMAT_VERSION,
    DroppedLine,
    EvictedLine,
    IndexLine,
    PoolError,
    SampleLine,
    SealLine,
    ShardHeader,
    acknowledged_bytes,
    complete_lines,
    encode_line,
    fsync_folder,
    index_path,
    list_indexes,
    parse_lines,
    read_span,
    shard_path,
    shards_without_index,
    split_index_name,
    write_all,
)

logger = logging.getLogger(__name__)

_WRITER_NAME = re.compile(r"^[A-Za-z0-9_-]{1,60}$")
_END_OF_TAR = bytes(1024)


@dataclass
class SeriesCounts:
    """What a series has held from its first day on, evicted shards included: exact after any restart."""

    samples: int = 0
    dropped: int = 0
    size_bytes: int = 0
    regions: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def add(self, line: IndexLine) -> None:
        """Count one line."""
        if isinstance(line, SampleLine):
            self.samples += 1
            self.size_bytes += line.size
        elif isinstance(line, DroppedLine):
            self.dropped += 1
        elif isinstance(line, EvictedLine):
            self.samples += len(line.sample_ids)
            self.dropped += len(line.dropped_ids)
            self.size_bytes += line.size_bytes
        else:
            return
        self.regions += line.num_regions
        for rule, count in line.rejected.items():
            self.rejected[rule] = self.rejected.get(rule, 0) + count


class ShardSeries:
    """Appends spans to a writer's newest shard and acknowledges each in the index once it is on disk.

    Opening takes the lock, cuts the torn member that a kill in mid-write has left and goes on behind it.
    Whole members that no index line speaks of are never cut: their shard is sealed. A shard without an index,
    or damaged in another way, is left as it is. A new one is begun behind all of them.

    Args:
        folder: the pool folder; it exists.
        writer_name: letters, digits, ``_`` and ``-``.
        shard_samples: a shard is sealed at this number of samples.
        shard_bytes: a shard is sealed at this number of bytes.

    Raises:
        PoolError: if the name is of another form, or if a living writer holds it.
    """

    def __init__(self, folder: Path, writer_name: str, *, shard_samples: int, shard_bytes: int):
        if not _WRITER_NAME.match(writer_name):
            raise PoolError(f"a writer's name is 1 to 60 letters, digits, '_' or '-', got {writer_name!r}")
        self._folder, self._writer_name = folder, writer_name
        self._shard_samples, self._shard_bytes = shard_samples, shard_bytes
        self._lock = SeriesLock(folder, writer_name)
        self._tar = self._index = -1
        self.counts = SeriesCounts()
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            with hold_pool(folder, wait=True):
                self._reopen()
            on_error.pop_all()

    def append(self, span: bytes, line: SampleLine) -> SampleLine:
        """Put one sample's span on disk, then its line; after an OSError the series is as it was before.

        Args:
            span: the sample's tar members.
            line: its index line, of which place, size and checksum are still to be filled in.

        Returns:
            The line as it was written.
        """
        if self._num_samples >= self._shard_samples or self._tar_bytes >= self._shard_bytes:
            self._seal()
        placed = msgspec.structs.replace(line, offset=self._tar_bytes, size=len(span), crc32=zlib.crc32(span))
        self._write(span, placed)
        self._tar_bytes += len(span)
        self._num_samples += 1
        return placed

    def record(self, line: DroppedLine) -> None:
        """Acknowledge a request that gave no sample; after an OSError the series is as it was before."""
        self._write(b"", line)

    def close(self) -> None:
        """Close the files and free the series; the newest shard stays open for the next writer."""
        self._close_shard()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write(self, span: bytes, line: IndexLine) -> None:
        text = encode_line(line)
        try:
            if span:
                write_all(self._tar, span)
                os.fsync(self._tar)
            write_all(self._index, text)
            os.fsync(self._index)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._index, self._index_bytes)
                os.ftruncate(self._tar, self._tar_bytes)
            raise
        self._index_bytes += len(text)
        self.counts.add(line)

    def _seal(self) -> None:
        self._write(b"", SealLine(size=self._tar_bytes))
        with contextlib.suppress(OSError):  # the end mark is a courtesy to `tar`; readers go by the index
            write_all(self._tar, _END_OF_TAR)
        self._begin(self._number + 1)

    def _reopen(self) -> None:
        """Go on with the newest shard, or begin one behind all that are there and all that were evicted."""
        names = {entry.name for entry in os.scandir(self._folder)}
        last_evicted = number = -1
        for line in EvictionLog(self._folder).read_new():
            remove_leftovers(self._folder, line, names)
            if line.writer == self._writer_name:
                self.counts.add(line)
                last_evicted = max(last_evicted, line.number)
        kept = None
        for path in list_indexes(self._folder, self._writer_name):
            number = split_index_name(path.name)[1]
            kept = self._recover(path)
        last = max(number, last_evicted, self._last_orphan())
        if kept is not None and number == last:
            self._begin(number, *kept)
            return
        if kept is not None:
            self._seal_off(index_path(self._folder, self._writer_name, number), kept[1], kept[0])
        self._begin(last + 1)

    def _last_orphan(self) -> int:
        """Tell of the shards without an index, and return the highest number of one; -1 if there is none."""
        names = [entry.name for entry in os.scandir(self._folder)]
        numbers = [number for writer, number in shards_without_index(names) if writer == self._writer_name]
        for number in numbers:
            tar = shard_path(index_path(self._folder, self._writer_name, number))
            if size := tar.stat().st_size:
                logger.warning(
                    "%s: its index is gone; its %d bytes are kept and not read, a new shard begins behind "
                    "it, and what they held is drawn again",
                    *(tar.name, size),
                )
        return max(numbers, default=-1)

    def _recover(self, path: Path) -> tuple[int, int, int] | None:
        """Count a shard's lines; return (tar bytes, index bytes, samples) if it can be appended to."""
        raw = complete_lines(path.read_bytes())
        tar = shard_path(path)
        tar_bytes = tar.stat().st_size if tar.exists() else 0
        try:
            lines = parse_lines(raw, path, with_header=True)
            for line in lines:
                if acknowledged_bytes([line]) <= tar_bytes:
                    self.counts.add(line)
            samples = [line for line in lines if isinstance(line, SampleLine)]
            if samples:  # the last one tells of a shard that is too short, and of a torn end
                read_span(tar, samples[-1].offset, samples[-1].size, samples[-1].crc32)
        except PoolError as error:
            logger.warning("a damaged shard is set aside, a new one begins: %s", error)
            return None
        if any(isinstance(line, SealLine) for line in lines):
            return None
        known_bytes = acknowledged_bytes(lines)
        if tar_bytes > known_bytes:
            is_whole = begins_with_whole_member(tar, known_bytes)
            logger.warning(
                "%s: no index line speaks of the %d bytes behind byte %d: a kill in mid-write, or an index "
                "that has lost lines; %s, what they held is drawn again",
                *(tar.name, tar_bytes - known_bytes, known_bytes),
                "they are kept and a new shard begins"
                if is_whole
                else "they are no whole sample and are cut",
            )
            if is_whole:
                self._seal_off(path, len(raw), known_bytes)
                return None
        return known_bytes, len(raw), len(samples)

    def _seal_off(self, path: Path, index_bytes: int, tar_bytes: int) -> None:
        """Seal a shard at what its index speaks of, so that nobody appends to it."""
        text = encode_line(SealLine(size=tar_bytes))
        if index_bytes == 0:
            number = split_index_name(path.name)[1]
            text = encode_line(ShardHeader(FORMAT_NAME, FORMAT_VERSION, self._writer_name, number)) + text
        with path.open("r+b") as file:
            file.truncate(index_bytes)
            file.seek(index_bytes)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _begin(self, number: int, tar_bytes: int = 0, index_bytes: int = 0, num_samples: int = 0) -> None:
        self._close_shard()
        path = index_path(self._folder, self._writer_name, number)
        self._number, self._num_samples = number, num_samples
        self._tar_bytes, self._index_bytes = tar_bytes, index_bytes
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._tar = os.open(shard_path(path), flags, 0o644)
        os.ftruncate(self._tar, tar_bytes)
        self._index = os.open(path, flags, 0o644)
        os.ftruncate(self._index, index_bytes)
        if index_bytes == 0:
            self._write(b"", ShardHeader(FORMAT_NAME, FORMAT_VERSION, self._writer_name, number))
        fsync_folder(self._folder)

    def _close_shard(self) -> None:
        for descriptor in (self._tar, self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._tar = self._index = -1
