"""Which generator answers which request, so that none is drawn twice and none is lost. No torch, no Ray."""

import heapq
from collections.abc import Sequence

from mflight.synthesis.pool.agenda import Agenda


class Dispatcher:
    """Hands one agenda out to many generators, each of which may die with requests in its hands.

    A request is out from ``take`` until its answer comes home. What a dead generator had in its hands is
    handed out again, before any new request and to whoever asks first. The requests that it was drawing when
    it died are suspects: each goes out alone the next time, and one that was with ``max_attempts`` dying
    generators is left out (``left_out``), so that it cannot end them all.

    Args:
        agenda: all requests, as for a single worker.
        max_attempts: deaths after which a request is left out.
    """

    def __init__(self, agenda: Agenda, *, max_attempts: int = 3):
        self._agenda, self._max_attempts = agenda, max_attempts
        self._out: dict[int, list[int]] = {}
        self._returned: list[int] = []
        self._attempts: dict[int, int] = {}
        self.left_out: list[int] = []

    def take(self, generator: int, count: int) -> list[int]:
        """Return up to ``count`` request indices for a generator to draw, the first ones first.

        Args:
            generator: who will draw them.
            count: how many at most.

        Returns:
            The indices, rising; none while there is nothing to hand out.
        """
        batch: list[int] = []
        while self._returned and len(batch) < count:
            is_suspect = self._returned[0] in self._attempts
            if is_suspect and batch:
                break
            batch.append(heapq.heappop(self._returned))
            if is_suspect:
                break
        else:
            batch += self._agenda.take(count - len(batch))
        self._out.setdefault(generator, []).extend(batch)
        return batch

    def answer(self, generator: int, index: int) -> bool:
        """Note that an answer has come home; return False if it is not awaited from this generator."""
        if index not in self._out.get(generator, ()):
            return False
        self._out[generator].remove(index)
        self._attempts.pop(index, None)
        return True

    def give_back(self, generator: int, *, num_suspects: int = 0) -> list[int]:
        """Take back what a dead generator had in its hands.

        Args:
            generator: who has died.
            num_suspects: how many of its oldest requests it was drawing.

        Returns:
            The requests that are left out from now on.
        """
        indices = self._out.pop(generator, [])
        for index in indices[:num_suspects]:
            self._attempts[index] = self._attempts.get(index, 0) + 1
        left_out = [index for index in indices if self._attempts.get(index, 0) >= self._max_attempts]
        for index in indices:
            if index not in left_out:
                heapq.heappush(self._returned, index)
        self.left_out.extend(left_out)
        return left_out

    def in_hand(self, generator: int) -> Sequence[int]:
        """Return the requests that a generator has not answered yet, the oldest first."""
        return tuple(self._out.get(generator, ()))

    @property
    def is_all_home(self) -> bool:
        """Whether no request is out or waits to be handed out again."""
        return not self._returned and not any(self._out.values())

    def is_done(self) -> bool:
        """Return whether every request is answered or left out, now and later."""
        return self.is_all_home and self._agenda.is_done()
