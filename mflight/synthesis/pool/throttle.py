"""When a worker has drawn enough for now, and what makes room for more. No torch."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mflight.synthesis.pool.eviction import evict_shard
from mflight.synthesis.pool.folder import check_pool_format
from mflight.synthesis.pool.follow import PoolTail
from mflight.synthesis.pool.locks import hold_pool
from mflight.synthesis.pool.numbered_names import NumberedNames
from mflight.synthesis.pool.shards import IndexLine, SampleLine, SealLine
from mflight.synthesis.pool.signals import ConsumptionTail

logger = logging.getLogger(__name__)

Pause = Literal["paused", "full"]
WhenFull = Literal["evict", "stop"]
_EVICTION_MARK = 0.95
_WORKERS_A_LOOK = 16


@dataclass
class _Shard:
    samples: int = 0
    size_bytes: int = 0
    time_s: float = 0.0
    is_sealed: bool = False


class Throttle:
    """Pauses a worker while the trainer is behind, and keeps the pool within its bounds.

    The backlog is the number of samples in the pool that no training rank has used yet. Drawing pauses when
    it reaches the high-water mark and goes on once it has sunk to the low-water mark, so a trainer that
    starts again from an older checkpoint causes a longer pause, never a burst of requests. A batch that has
    been begun is finished: marks and bounds may be passed by one batch per worker. Of W workers each follows
    what all W write, so from 32 workers on they look for every W / 16 batches only, while as many from all of
    them do not reach a mark, and in a pool that evicts are no more than a tenth of it.

    At its bounds the pool stops growing (``stop``), or its oldest shards are dropped (``evict``): whichever
    worker comes first drops as many as bring it below 95 % of the bounds. Fresh samples are used first, so
    the oldest shards are those most used. What it holds is a few numbers for each shard in the pool, and
    about a bit for each request ever answered.

    Args:
        folder: the pool folder.
        high_water: backlog at which drawing pauses; None never pauses.
        low_water: backlog at which it goes on; None means half of ``high_water``.
        max_samples: bound of the pool in samples; None has no bound.
        max_bytes: bound of the pool's shards in bytes; None has no bound.
        when_full: what happens at the bounds.
        num_workers: W.
        batch_size: samples of one batch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        high_water: int | None = None,
        low_water: int | None = None,
        max_samples: int | None = None,
        max_bytes: int | None = None,
        when_full: WhenFull = "stop",
        num_workers: int = 1,
        batch_size: int = 1,
    ):
        check_pool_format(folder)
        self._folder, self._tail, self._consumption = folder, PoolTail(folder), ConsumptionTail(folder)
        self._high_water = high_water
        self._low_water = (high_water or 0) // 2 if low_water is None else low_water
        self._max_samples, self._max_bytes, self._when_full = max_samples, max_bytes, when_full
        self._batches_a_look = max(1, num_workers // _WORKERS_A_LOOK)
        self._samples_a_look = num_workers * self._batches_a_look * batch_size
        self._batches_without_look = 0
        self._shards: dict[str, _Shard] = {}
        self._sample_ids = NumberedNames()
        self._is_paused = self._has_failed = False
        self._update()

    @property
    def dropped_ids(self) -> NumberedNames:
        """Ids of the requests whose canvases were dropped."""
        return self._tail.dropped_ids

    def is_answered(self, request_id: str) -> bool:
        """Return whether anybody has answered a request in this pool, by a sample or by a dropped canvas."""
        return request_id in self._sample_ids or request_id in self._tail.dropped_ids

    def pause(self) -> Pause | None:
        """Return why not to draw the next batch now, or None; make room where that is needed."""
        if self._batches_without_look:
            self._batches_without_look -= 1
            return None
        self._update()
        if self._when_full == "stop" and self._fills(1.0):
            return "full"
        backlog = 0 if self._high_water is None else self._backlog()
        if self._high_water is not None and self._is_ahead(backlog):
            return "paused"
        if self._when_full == "evict" and self._fills(_EVICTION_MARK):
            return self._make_room()
        if self._is_far_from_marks(backlog):
            self._batches_without_look = self._batches_a_look - 1
        return None

    def _is_far_from_marks(self, backlog: int) -> bool:
        """Return whether all workers may draw on without a look for ``W / 16`` batches."""
        if self._high_water is not None and backlog + self._samples_a_look > self._high_water:
            return False
        held = sum(shard.samples for shard in self._shards.values())
        held_bytes = sum(shard.size_bytes for shard in self._shards.values())
        for bound, size, more in (
            (self._max_samples, held, self._samples_a_look),
            (self._max_bytes, held_bytes, self._samples_a_look * held_bytes / max(1, held)),
        ):
            if bound is not None and more > (bound / 10 if self._when_full == "evict" else bound - size):
                return False
        return True

    def _backlog(self) -> int:
        """Return how many samples of the shards in the pool no rank has used."""
        num_samples = sum(shard.samples for shard in self._shards.values())
        return num_samples - sum(
            count
            for used_samples in self._consumption.read()
            for shard, count in used_samples.items()
            if shard.removesuffix(".tar") in self._shards
        )

    def _is_ahead(self, backlog: int) -> bool:
        self._is_paused = backlog > self._low_water if self._is_paused else backlog >= self._high_water
        return self._is_paused

    def _fills(self, share: float) -> bool:
        """Return whether the pool has reached a share of one of its bounds."""
        shards = self._shards.values()
        if self._max_samples is not None:
            if sum(shard.samples for shard in shards) >= share * self._max_samples:
                return True
        return self._max_bytes is not None and (
            sum(shard.size_bytes for shard in shards) >= share * self._max_bytes
        )

    def _make_room(self) -> Pause | None:
        """Drop the oldest shards; "full" if the disk refuses. Another worker at it is left to it."""
        try:
            with hold_pool(self._folder, wait=False) as is_held:
                if is_held:
                    self._update()
                    self._evict()
        except OSError as error:
            if not self._has_failed:
                logger.warning("the pool is full and no shard can be dropped: %s", error)
            self._has_failed = True
            return "full"
        return None

    def _evict(self) -> None:
        for stem in sorted(self._shards, key=lambda stem: (self._shards[stem].time_s, stem)):
            if not self._fills(_EVICTION_MARK):
                return
            index = self._folder / f"{stem}.idx.jsonl"
            if self._shards[stem].samples and evict_shard(index, is_sealed=self._shards[stem].is_sealed):
                del self._shards[stem]

    def _update(self) -> None:
        for stem, line in self._tail.read_evicted():
            shard = self._shards.pop(stem, None)
            if shard is None or shard.samples != len(line.sample_ids):  # else it has counted each of them
                self._sample_ids.update(line.sample_ids)
        for stem, lines in self._tail.read_new():
            shard = self._shards.setdefault(stem, _Shard())
            for line in lines:
                self._count(shard, line)

    def _count(self, shard: _Shard, line: IndexLine) -> None:
        if isinstance(line, SampleLine):
            shard.size_bytes = max(shard.size_bytes, line.offset + line.size)
            shard.time_s = line.time_s
            num_known = len(self._sample_ids)
            self._sample_ids.add(line.sample_id)
            shard.samples += len(self._sample_ids) - num_known
        elif isinstance(line, SealLine):
            shard.is_sealed = True


def check_marks(
    low_water: int | None, high_water: int | None, max_samples: int | None, when_full: WhenFull
) -> None:
    """Refuse marks that contradict each other, or bounds under which unused samples would be evicted.

    Args:
        low_water: as of ``Throttle``.
        high_water: as of ``Throttle``.
        max_samples: as of ``Throttle``.
        when_full: as of ``Throttle``.

    Raises:
        ValueError: if ``low_water`` is not below ``high_water``, or if a pool that evicts cannot hold twice
            ``high_water``.
    """
    if high_water is None:
        return
    if low_water is not None and low_water >= high_water:
        raise ValueError(f"low_water must be below high_water {high_water}, got {low_water}")
    if when_full == "evict" and max_samples is not None and max_samples < 2 * high_water:
        raise ValueError(
            f"max_samples must be at least twice high_water {high_water} where when_full=evict drops the "
            f"oldest samples, got {max_samples}"
        )
