"""Home's end of one Ray generator: the actor if it lives, the calls under way, the answers on their way home.

Ray is imported by whoever makes the actor class; this file needs it only for its errors.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from mflight.synthesis.ray.cluster import name_node
from mflight.synthesis.restarts import Restarts
from mflight.synthesis.worker import UnfitSettingsError

logger = logging.getLogger(__name__)

CALLS_AHEAD = 2  # one is drawn while the next one waits, so that no generator waits for home
_BACKPRESSURE_ANSWERS = 4  # drawn but not yet fetched; then the generator waits


class GeneratorLostError(Exception):
    """The generator has died, or what it was doing has failed; the text says how."""


class GeneratorLink(Restarts):
    """One place for a generator, whichever actor fills it now. Nothing here waits.

    ``place`` is what the actor says of itself (``RayGenerator.describe``), None until it is ready;
    ``launched_at`` is the moment of its launch on the monotonic clock, in seconds.

    Args:
        number: of the place.
        actor_class: Ray's actor class, its options set.
        settings: of the actor's constructor.
        **restarts: settings of ``Restarts``.
    """

    def __init__(self, number: int, actor_class: Any, settings: Mapping[str, Any], **restarts: Any):
        super().__init__(**restarts)
        self.number = number
        self._actor_class, self._settings = actor_class, settings
        self._actor: Any = None
        self._ready: Any = None
        self._calls: deque[Any] = deque()
        self._arriving: deque[Any] = deque()
        self.place: dict[str, Any] | None = None
        self.launched_at = 0.0
        self.restart_at = 0.0  # the first start is due

    @property
    def is_launched(self) -> bool:
        """Whether there is an actor, ready or on its way."""
        return self._actor is not None

    @property
    def can_take_a_call(self) -> bool:
        """Whether it is ready and has less work ahead than it may."""
        return self.place is not None and len(self._calls) < CALLS_AHEAD

    def launch(self) -> None:
        """Ask Ray for an actor; it becomes ready when it has found a place and has loaded its model."""
        self.restart_at, self.launched_at = None, time.monotonic()
        self._actor = self._actor_class.remote(**self._settings)
        self._ready = self._actor.describe.remote()

    def call(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Send requests to be drawn.

        Args:
            requests: written by ``MosaicRequest.to_dict``.
        """
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": _BACKPRESSURE_ANSWERS}
        self._calls.append(self._actor.draw.options(**options).remote(requests))

    def awaited(self) -> list[Any]:
        """Return what ``ray.wait`` is to wait for."""
        return [*([self._ready] if self._ready is not None else []), *self._calls, *self._arriving]

    def receive(self, ref: Any) -> dict[str, Any] | None:
        """Take what ``ray.wait`` has found ready.

        Args:
            ref: one of ``awaited``.

        Returns:
            An answer of ``RayGenerator.draw``; None where it is none.

        Raises:
            GeneratorLostError: if it turns out that the generator has died.
            UnfitSettingsError: if it cannot be built as it is configured, nor can any other.
        """
        import ray

        try:
            if ref is self._ready:
                self.place, self._ready = ray.get(ref), None
            elif any(ref is call for call in self._calls):
                self._take_from(ref)
            elif any(ref is one for one in self._arriving):
                self._arriving.remove(ref)
                return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            what = f"ended{self._where()} with {type(error.cause).__name__}: {error.cause}"
            raise GeneratorLostError(what) from error
        except ray.exceptions.RayError as error:
            what = self._describe_loss(error)
            _, is_unfit, sentence = what.partition(f"{UnfitSettingsError.__name__}: ")
            if is_unfit:
                raise UnfitSettingsError(sentence) from error
            raise GeneratorLostError(what) from error
        return None

    def discard(self) -> None:
        """End the actor, if there is one, and forget what it was doing."""
        import ray

        if self._actor is not None:
            try:
                ray.kill(self._actor)
            except Exception as error:
                logger.info("generator %d could not be killed: %s", self.number, error)
        self._actor = self._ready = self.place = None
        self._calls.clear()
        self._arriving.clear()

    def _take_from(self, call: Any) -> None:
        try:
            self._arriving.append(next(call))
        except StopIteration:
            self._calls.remove(call)

    def _where(self) -> str:
        return f" on {name_node(self.place['host'], self.place['node_id'])}" if self.place else ""

    def _describe_loss(self, error: Exception) -> str:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if "creation task" in str(error):  # its constructor has failed: the last line names the error
            return f"could not be built: {lines[-1]}"
        return f"was lost{self._where()} with its process or its node ({type(error).__name__})"
