"""Which requests a worker answers, and when all wanted ones are answered. No torch."""

import bisect
import itertools
from collections.abc import Callable

from mflight.synthesis.pool.index import PoolIndex

_NEW_DROPPED = """
    SELECT number, request_index FROM requests
    WHERE number > ? AND +state = 'dropped' AND request_id GLOB ? ORDER BY number
"""
_NUM_ANSWERED = "SELECT count(*) FROM requests WHERE request_id GLOB ? AND request_index < ?"


class Agenda:
    """Hands out the request indices of one worker, without those already answered.

    Worker w of W takes the blocks w, w + W, w + 2 W, ... of ``block_size`` consecutive requests each, so that
    what is drawn together is of neighbours, which share the shapes of their regions.

    With ``num_samples`` N the workers together answer exactly the requests ``0 .. L - 1`` of which the last
    one gives sample N. A request is handed out only if it is surely among these: if it would be so even when
    all requests before it that nobody has answered yet gave samples. So the pool holds the same samples, and
    none too many, whatever the batch size, the number of workers and the moments of their deaths.

    Args:
        index: of the pool.
        request_id: gives the id of the request at an index.
        worker_index: w.
        num_workers: W.
        block_size: consecutive requests that go to the same worker.
        max_requests: requests are handed out up to this index; None has no end.
        num_samples: N; None has no goal.
    """

    def __init__(
        self,
        index: PoolIndex,
        request_id: Callable[[int], str],
        *,
        worker_index: int = 0,
        num_workers: int = 1,
        block_size: int = 1,
        max_requests: int | None = None,
        num_samples: int | None = None,
    ):
        self._index, self._ids = index, ids_of_seed(request_id(0))
        self._max_requests, self._num_samples = max_requests, num_samples
        self._dropped: list[int] = []
        self._last_number = 0
        blocks = itertools.count(worker_index, num_workers)
        indices = (block * block_size + place for block in blocks for place in range(block_size))
        self._indices = (one for one in indices if not index.is_answered(request_id(one)))
        self._next = next(self._indices)

    def take(self, count: int) -> list[int]:
        """Return up to ``count`` indices to draw now; none while the answers of other workers are awaited."""
        limit = self._find_limit()
        batch: list[int] = []
        while len(batch) < count and (limit is None or self._next < limit):
            batch.append(self._next)
            self._next = next(self._indices)
        return batch

    def is_done(self) -> bool:
        """Return whether this worker has no request left, now and later."""
        if self._max_requests is not None and self._next >= self._max_requests:
            return True
        limit = self._find_limit()
        if limit is None or self._next < limit:
            return False
        return self._index.value(_NUM_ANSWERED, self._ids, limit) == limit

    def _find_limit(self) -> int | None:
        """Return the first index that is not surely wanted, by the answers known now."""
        if self._num_samples is None:
            return self._max_requests
        for number, dropped in self._index.rows(_NEW_DROPPED, self._last_number, self._ids):
            self._last_number = number
            bisect.insort(self._dropped, dropped)
        limit = self._num_samples
        for dropped in self._dropped:
            if dropped >= limit:
                break
            limit += 1
        return limit if self._max_requests is None else min(limit, self._max_requests)


def ids_of_seed(request_id: str) -> str:
    """Return the GLOB pattern of all requests of a seed, given the id of one: ``7-*`` for ``7-00000042``."""
    return request_id.rpartition("-")[0] + "-*"
