"""Following everything that the writers of a pool acknowledge and evict, a little at a time. No torch."""

import logging
import os
from itertools import pairwise
from pathlib import Path

from mflight.synthesis.pool.eviction import EvictionLog
from mflight.synthesis.pool.numbered_names import NumberedNames
from mflight.synthesis.pool.shards import (
    DroppedLine,
    EvictedLine,
    IndexLine,
    IndexTail,
    PoolError,
    SampleLine,
    acknowledged_bytes,
    index_path,
    shard_path,
    shard_stem,
    split_index_name,
)

logger = logging.getLogger(__name__)


class PoolTail:
    """Follows all indexes of a pool folder and the log of its evictions; it holds no line and no sample.

    What is torn or foreign is logged once, noted in ``set_aside`` (file, or shard and offset, to the reason)
    and passed over. ``dropped_ids`` names the requests whose canvases were dropped.

    Args:
        folder: the pool folder; it may appear later.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._log = EvictionLog(folder)
        self._tails: dict[str, IndexTail] = {}
        self._listed: list[str] = []
        self._ordered: list[str] = []
        self._writer_and_number: dict[str, tuple[str, int] | None] = {}
        self._finished: set[str] = set()  # sealed, or set aside
        self._evicted_shards = NumberedNames()
        self.set_aside: dict[str, str] = {}
        self.dropped_ids = NumberedNames()

    def read_evicted(self) -> list[tuple[str, EvictedLine]]:
        """Return what is left of the shards evicted since the last call, by ``shard-<writer>-<number>``."""
        evicted = []
        for line in self._log.read_new():
            index = index_path(self._folder, line.writer, line.number)
            self._tails.pop(index.name, None)
            self._finished.discard(index.name)
            self.dropped_ids.update(line.dropped_ids)
            evicted.append((shard_stem(index), line))
        self._evicted_shards.update(stem for stem, _ in evicted)
        self.set_aside.update(self._log.set_aside)
        return evicted

    def read_new(self) -> list[tuple[str, list[IndexLine]]]:
        """Return the lines completed since the last call, by shard stem; samples whose bytes are there."""
        found = []
        names = self._list_names()
        for name in names:
            if name in self._finished or (tail := self._tail_of(name)) is None:
                continue
            if lines := self._read_index(tail):
                for line in lines:
                    if isinstance(line, DroppedLine):
                        self.dropped_ids.add(line.sample_id)
                found.append((tail.stem, lines))
        self._tell_of_lost_seals(names)
        return found

    def _list_names(self) -> list[str]:
        """Return the names of the index files by writer and number; each name is taken apart once."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            names = []
        if names != self._listed:
            known = self._writer_and_number
            self._writer_and_number = {
                name: known[name] if name in known else split_index_name(name) for name in names
            }
            numbered = sorted((key, name) for name, key in self._writer_and_number.items() if key)
            self._listed, self._ordered = names, [name for _, name in numbered]
        return self._ordered

    def _tail_of(self, name: str) -> IndexTail | None:
        """Return what follows an index; None for one whose shard has been evicted (a kill has left it)."""
        if name not in self._tails:
            tail = IndexTail(self._folder / name)
            if tail.stem in self._evicted_shards:
                return None
            self._tails[name] = tail
        return self._tails[name]

    def _read_index(self, tail: IndexTail) -> list[IndexLine]:
        path = tail.path
        try:
            lines = tail.read_new()
        except (PoolError, OSError) as error:
            if path.exists():  # else it has made room since it was listed
                self._put_aside(path.name, str(error))
                self._finished.add(path.name)
            return []
        if tail.is_sealed:
            self._finished.add(path.name)
        return self._keep_whole(tail, lines) if lines else []

    def _keep_whole(self, tail: IndexTail, lines: list[IndexLine]) -> list[IndexLine]:
        """Leave out the samples that the shard is too short for."""
        needed_bytes = acknowledged_bytes(lines)
        try:
            shard_bytes = tail.shard_bytes() if needed_bytes else 0
        except FileNotFoundError:
            if not tail.path.exists():  # evicted: the index goes first
                return []
            shard_bytes = 0
        if needed_bytes <= shard_bytes:
            return lines
        whole, name = [], shard_path(tail.path).name
        for line in lines:
            if isinstance(line, SampleLine) and line.offset + line.size > shard_bytes:
                end = line.offset + line.size
                reason = f"{name}: torn, {shard_bytes} bytes, sample {line.sample_id} ends at {end}"
                self._put_aside(f"{name}@{line.offset}", reason)
            else:
                whole.append(line)
        return whole

    def _tell_of_lost_seals(self, names: list[str]) -> None:
        """Tell of an index that does not end with its seal although its writer has begun another shard."""
        for name, later in pairwise(names):
            is_newest = self._writer_and_number[name][0] != self._writer_and_number[later][0]
            if is_newest or name in self._finished or name not in self._tails:
                continue
            if (self._folder / name).exists():
                self._put_aside(name, f"{name}: no seal at its end, it has lost lines; what it says is read")
                self._finished.add(name)

    def _put_aside(self, name: str, reason: str) -> None:
        if name not in self.set_aside:
            self.set_aside[name] = reason
            logger.warning("set aside in the pool: %s", reason)
