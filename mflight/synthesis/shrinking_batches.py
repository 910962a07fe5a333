"""Drawing in batches that shrink to what the device's memory holds. No torch of its own."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from mflight.synthesis.shortages import free_device_memory, is_out_of_memory
from mflight.synthesis.turns import Turns

logger = logging.getLogger(__name__)


class ShrinkingBatches:
    """Draws requests in batches, and halves ``batch_size`` whenever the device's memory does not suffice.

    Args:
        synthesizer: draws a batch.
        batch_size: requests drawn at once at first.
        turns: of a device that is shared with the trainer; each batch waits for one.
    """

    def __init__(self, synthesizer: Any, batch_size: int, *, turns: Turns | None = None):
        self._synthesizer, self.batch_size, self._turns = synthesizer, batch_size, turns

    def draw(self, requests: Sequence[Any]) -> Iterator[Any]:
        """Yield the results of the requests in order.

        Args:
            requests: what to draw; any number of them.

        Yields:
            one result a request.

        Raises:
            Exception: what the synthesizer raises, also for want of memory when the batch is one request.
        """
        while requests:
            part = requests[: self.batch_size]
            try:
                with self._turns.turn() if self._turns else contextlib.nullcontext():
                    results = self._synthesizer.synthesize(part)
            except Exception as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                self.batch_size = max(1, len(part) // 2)
                logger.warning("out of device memory, the batch shrinks to %d requests", self.batch_size)
                free_device_memory()
                continue
            requests = requests[len(part) :]
            yield from results
