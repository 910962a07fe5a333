"""When a worker has drawn enough for now, and what makes room for more. No torch."""

import logging
from typing import Literal, NamedTuple

from mflight.synthesis.pool.index import PoolIndex

logger = logging.getLogger(__name__)

Pause = Literal["paused", "full"]
WhenFull = Literal["evict", "stop"]
_EVICTION_MARK = 0.95
_HELD = "SELECT count(*), total(size), total(uses = 0) FROM requests WHERE state = 'kept'"
_SHARDS_BY_AGE = """
    SELECT shard, count(*), sum(size) FROM requests WHERE state = 'kept' GROUP BY shard
    ORDER BY min(uses) = 0, max(number)
"""
_EVICT = "UPDATE requests SET state = 'evicted' WHERE state = 'kept' AND shard = ?"


class _Held(NamedTuple):
    """What the pool holds."""

    samples: int
    size_bytes: int
    unused: int


class Throttle:
    """Pauses a worker while the trainer is behind, and keeps the pool within its bounds.

    The backlog is the number of samples in the pool that no training rank has used yet. Drawing pauses when
    it reaches the high-water mark and goes on once it has sunk to the low-water mark, so a trainer that
    starts again from an older checkpoint causes a longer pause, never a burst of requests. A batch that has
    been begun is finished: marks and bounds may be passed by one batch per worker.

    At its bounds the pool stops growing (``stop``), or its oldest shards are dropped (``evict``), those first
    whose samples have all been used: whichever worker comes first drops as many as bring it below 95 % of the
    bounds. What they answered stays answered.

    Args:
        index: of the pool.
        high_water: backlog at which drawing pauses; None never pauses.
        low_water: backlog at which it goes on; None means half of ``high_water``.
        max_samples: bound of the pool in samples; None has no bound.
        max_bytes: bound of the pool's samples in bytes; None has no bound.
        when_full: what happens at the bounds.
    """

    def __init__(
        self,
        index: PoolIndex,
        *,
        high_water: int | None = None,
        low_water: int | None = None,
        max_samples: int | None = None,
        max_bytes: int | None = None,
        when_full: WhenFull = "stop",
    ):
        self._index, self._high_water = index, high_water
        self._low_water = (high_water or 0) // 2 if low_water is None else low_water
        self._max_samples, self._max_bytes, self._when_full = max_samples, max_bytes, when_full
        self._is_paused = self._has_failed = False

    def pause(self) -> Pause | None:
        """Return why not to draw the next batch now, or None; make room where that is needed."""
        held = self._look()
        if self._when_full == "stop" and self._fills(held, 1.0):
            return "full"
        if self._high_water is not None and self._is_ahead(held.unused):
            return "paused"
        if self._when_full == "evict" and self._fills(held, _EVICTION_MARK):
            return self._make_room()
        return None

    def _look(self) -> _Held:
        return _Held(*self._index.rows(_HELD)[0])

    def _is_ahead(self, backlog: int) -> bool:
        self._is_paused = backlog > self._low_water if self._is_paused else backlog >= self._high_water
        return self._is_paused

    def _fills(self, held: _Held, share: float) -> bool:
        """Return whether the pool has reached a share of one of its bounds."""
        bounds = ((self._max_samples, held.samples), (self._max_bytes, held.size_bytes))
        return any(bound is not None and size >= share * bound for bound, size in bounds)

    def _make_room(self) -> Pause | None:
        """Drop shards; "full" if the disk refuses."""
        try:
            with self._index.transaction():
                evicted = self._evict()
            for shard in evicted:  # a kill here leaves files that the next writer removes
                (self._index.folder / shard).unlink(missing_ok=True)
        except OSError as error:
            if not self._has_failed:
                logger.warning("the pool is full and no shard can be dropped: %s", error)
            self._has_failed = True
            return "full"
        return None

    def _evict(self) -> list[str]:
        held, evicted = self._look(), []
        for shard, samples, size_bytes in self._index.rows(_SHARDS_BY_AGE):
            if not self._fills(held, _EVICTION_MARK):
                break
            self._index.change(_EVICT, shard)
            held = _Held(held.samples - samples, held.size_bytes - size_bytes, held.unused)
            evicted.append(shard)
        return evicted


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


def bounded_shard(num_writers: int, max_samples: int | None, max_bytes: int | None) -> dict[str, int]:
    """Return the shard settings of ``PoolWriter`` under which a bounded pool drops little at once.

    The newest shards of all writers together hold a quarter of the pool at most.

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
