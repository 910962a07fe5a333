"""Drawing in batches that shrink to what the device's memory holds. No torch of its own."""

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

logger = logging.getLogger(__name__)


class ShrinkingBatches:
    """Draws requests in batches, and halves ``batch_size`` whenever the device's memory does not suffice.

    Args:
        synthesizer: draws a batch.
        batch_size: requests drawn at once at first.
    """

    def __init__(self, synthesizer: Any, batch_size: int):
        self._synthesizer, self.batch_size = synthesizer, batch_size

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
                results = self._synthesizer.synthesize(part)
            except Exception as error:
                if not _is_out_of_memory(error) or len(part) == 1:
                    raise
                self.batch_size = max(1, len(part) // 2)
                logger.warning("out of device memory, the batch shrinks to %d requests", self.batch_size)
                _free_device_memory()
                continue
            requests = requests[len(part) :]
            yield from results


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _free_device_memory() -> None:
    torch = sys.modules["torch"]  # there, since the error was one of its own
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
