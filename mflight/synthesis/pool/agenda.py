"""Which requests a worker answers, and when all wanted ones are answered. No torch."""

import itertools
from collections.abc import Callable

from mflight.synthesis.pool.throttle import Throttle


class Agenda:
    """Hands out the request indices of one worker, without those already answered.

    Worker w of W takes the blocks w, w + W, w + 2 W, ... of ``block_size`` consecutive requests each, so that
    what is drawn together is of neighbours, which share the shapes of their regions.

    With ``num_samples`` N the workers together answer exactly the requests ``0 .. L - 1`` of which the last
    one gives sample N. A request is handed out only if it is surely among these: if it would be so even when
    all requests before it that nobody has answered yet gave samples. So the pool holds the same samples, and
    none too many, whatever the batch size, the number of workers and the moments of their deaths.

    Args:
        throttle: what the pool holds.
        request_id: gives the id of the request at an index.
        worker_index: w.
        num_workers: W.
        block_size: consecutive requests that go to the same worker.
        max_requests: requests are handed out up to this index; None has no end.
        num_samples: N; None has no goal.
    """

    def __init__(
        self,
        throttle: Throttle,
        request_id: Callable[[int], str],
        *,
        worker_index: int = 0,
        num_workers: int = 1,
        block_size: int = 1,
        max_requests: int | None = None,
        num_samples: int | None = None,
    ):
        self._throttle, self._request_id = throttle, request_id
        self._max_requests, self._num_samples = max_requests, num_samples
        self._limit, self._limit_of = 0, -1
        blocks = itertools.count(worker_index, num_workers)
        indices = (block * block_size + place for block in blocks for place in range(block_size))
        self._indices = (index for index in indices if not throttle.is_answered(request_id(index)))
        self._next = next(self._indices)

    def take(self, count: int) -> list[int]:
        """Return up to ``count`` indices to draw now; none while the answers of other workers are awaited."""
        limit = self._current_limit()
        batch: list[int] = []
        while len(batch) < count and (limit is None or self._next < limit):
            batch.append(self._next)
            self._next = next(self._indices)
        return batch

    def is_done(self) -> bool:
        """Return whether this worker has no request left, now and later."""
        if self._max_requests is not None and self._next >= self._max_requests:
            return True
        limit = self._current_limit()
        if limit is None or self._next < limit:
            return False
        return all(self._throttle.is_answered(self._request_id(index)) for index in range(limit))

    def _current_limit(self) -> int | None:
        """Return the first index that is not surely wanted, by the answers known now."""
        if self._num_samples is None:
            return self._max_requests
        dropped = self._throttle.dropped_ids
        if len(dropped) != self._limit_of:
            wanted = (i for i in itertools.count() if self._request_id(i) not in dropped)
            self._limit = next(itertools.islice(wanted, self._num_samples - 1, None)) + 1
            self._limit_of = len(dropped)
        return self._limit if self._max_requests is None else min(self._limit, self._max_requests)
