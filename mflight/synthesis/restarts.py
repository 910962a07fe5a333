"""When a dead generator lives again, and when it is given up. No torch."""

import time

_MAX_BACKOFF_S = 60.0


class Restarts:
    """The deaths of one generator: each wait for a restart is twice the last one, and restarts are counted.

    ``restart_at`` is the moment of the next start on the monotonic clock, in seconds, or None.

    Args:
        max_restarts: how often it is started again.
        backoff_s: wait before the first restart, in seconds; doubled each time, at most a minute.
        without_worker: what a message says of the time after it is given up.
    """

    def __init__(self, *, max_restarts: int, backoff_s: float, without_worker: str):
        self._max_restarts, self._backoff_s, self.without_worker = max_restarts, backoff_s, without_worker
        self.num_deaths = 0
        self.restart_at: float | None = None
        self.is_given_up = False

    @property
    def is_due(self) -> bool:
        """Whether it is to be started now."""
        return self.restart_at is not None and time.monotonic() >= self.restart_at

    def note_death(self, what: str) -> str:
        """Count a death and set the next start.

        Args:
            what: how it died, as the rest of a sentence that its name begins.

        Returns:
            That rest, and what follows from the death.
        """
        self.num_deaths += 1
        if self.num_deaths > self._max_restarts:
            self.is_given_up = True
            return f"{what}; it is given up after {self.num_deaths} deaths, {self.without_worker}"
        wait_s = min(_MAX_BACKOFF_S, self._backoff_s * 2 ** (self.num_deaths - 1))
        self.restart_at = time.monotonic() + wait_s
        return f"{what}; restart {self.num_deaths} of {self._max_restarts} in {wait_s:g} s"
