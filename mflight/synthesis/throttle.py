"""When a worker has drawn enough for now. No torch."""

from pathlib import Path
from typing import Literal

from mflight.synthesis.pool import PoolReader
from mflight.synthesis.signals import read_consumption

Pause = Literal["paused", "full"]


class Throttle:
    """Pauses a worker while the trainer is behind, and when the pool has reached its bounds.

    The backlog is the number of samples in the pool that no training rank has used yet. Drawing pauses when
    it reaches the high-water mark and goes on once it has sunk to the low-water mark, so a trainer that
    starts again from an older checkpoint causes a longer pause, never a burst of requests. A batch that has
    been begun is finished: marks and bounds may be passed by one batch per worker.

    Args:
        folder: the pool folder.
        high_water: backlog at which drawing pauses; None never pauses.
        low_water: backlog at which it goes on; None means half of ``high_water``.
        max_samples: bound of the pool in samples; None has no bound.
        max_bytes: bound of the pool in bytes; None has no bound.
    """

    def __init__(
        self,
        folder: Path,
        *,
        high_water: int | None = None,
        low_water: int | None = None,
        max_samples: int | None = None,
        max_bytes: int | None = None,
    ):
        self._folder, self._reader = folder, PoolReader(folder)
        self._high_water = high_water
        self._low_water = (high_water or 0) // 2 if low_water is None else low_water
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._size_bytes = 0
        self._is_paused = False
        self.sample_ids: set[str] = set()
        self._update()

    @property
    def answered_ids(self) -> set[str]:
        """Ids of the requests that anybody has answered in this pool, by a sample or by a dropped canvas."""
        return self.sample_ids | self.dropped_ids

    @property
    def dropped_ids(self) -> set[str]:
        """Ids of the requests whose canvases were dropped."""
        return self._reader.dropped_ids

    def pause(self) -> Pause | None:
        """Return why not to draw now, or None."""
        self._update()
        if self._max_samples is not None and len(self.sample_ids) >= self._max_samples:
            return "full"
        if self._max_bytes is not None and self._size_bytes >= self._max_bytes:
            return "full"
        if self._high_water is None:
            return None
        backlog = len(self.sample_ids) - read_consumption(self._folder)
        self._is_paused = backlog > self._low_water if self._is_paused else backlog >= self._high_water
        return "paused" if self._is_paused else None

    def _update(self) -> None:
        for ref in self._reader.poll():
            self.sample_ids.add(ref.sample_id)
            self._size_bytes += ref.size
