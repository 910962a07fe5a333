"""The generators as the training sees them: what they told, whether more may come, whose turn it is."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Literal

import torch

from mflight.synthesis.generator_settings import GeneratorSettings
from mflight.synthesis.pool.recovery import find_unacknowledged
from mflight.synthesis.pool.signals import is_generating, mark_generating
from mflight.synthesis.service import ServiceReport
from mflight.synthesis.turns import Turns
from mflight.training.service_keeper import ServiceKeeper

logger = logging.getLogger(__name__)

Sharing = Literal["take_turns", "fill_first"]
_HAND_OVER_PATIENCE_S = 0.25
_FILL_NOTE_S = 30.0


class Generators:
    """Runs the generators beside one training rank, or follows those that another rank runs.

    Args:
        settings: of the generators.
        pool_dir: the pool folder; ``None`` if nothing is read from it.
        rank: of this training process.
        poll_s: time between two looks at them, in seconds.
        sharing: how they and the training share one device; ``None`` if each has its own.
        turn_steps: training steps between two turns of the generators under ``take_turns``.
    """

    def __init__(
        self,
        *,
        settings: GeneratorSettings,
        pool_dir: Path | None,
        rank: int = 0,
        poll_s: float = 1.0,
        sharing: Sharing | None = None,
        turn_steps: int = 16,
    ):
        self._pool_dir, self._sharing, self._turn_steps = pool_dir, sharing, turn_steps
        self._settings, self._rank, self._poll_s = settings, rank, poll_s
        self._keeper: ServiceKeeper | None = None
        self._is_running, self._is_generating, self._looked_at = False, True, 0.0
        self._turns: Turns | None = None
        self._num_batches = 0
        self.report: ServiceReport | None = None
        self.messages: list[str] = []
        self.fill_s = 0.0
        self.turns_s = 0.0

    def start(self) -> None:
        """Start them on rank 0, and wait for a filled pool where the device is theirs first."""
        if self._is_running:
            return
        self._is_running = True
        if self._rank > 0:
            return
        self._keeper = ServiceKeeper(self._settings.build_service(), self._poll_s, self._note)
        if self._pool_dir is not None:
            for name, left in find_unacknowledged(self._pool_dir).items():
                self._tell(f"pool: {name} {left}; its writer draws those requests again")
            self._pool_dir.mkdir(parents=True, exist_ok=True)
            mark_generating(self._pool_dir, True)
        if self._sharing == "take_turns" and self._pool_dir is not None:
            self._turns = Turns(self._pool_dir)
            self._turns.take()
        self._keeper.start()
        if self._sharing == "fill_first":
            self._fill()

    def more_may_come(self) -> bool:
        """Return whether any generator still works or will be started again."""
        if self._keeper is not None:
            return self._keeper.is_alive and not (self.report and self.report.is_over)
        if self._pool_dir is not None and time.monotonic() - self._looked_at > self._poll_s:
            self._looked_at = time.monotonic()
            self._is_generating = is_generating(self._pool_dir)
        return self._is_generating

    def count_batch(self) -> None:
        """Hand the shared device over when a turn of training has ended."""
        self._num_batches += 1
        if self._turns is None or self._num_batches % self._turn_steps or not self.more_may_come():
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.turns_s += self._turns.hand_over(_HAND_OVER_PATIENCE_S)

    def wait_for_sample(self) -> None:
        """Let the other side of a shared device draw, where the training waits for a sample."""
        if self._turns is not None:
            self._turns.hand_over(_HAND_OVER_PATIENCE_S)

    def stop(self) -> None:
        """Stop them; nothing more will come."""
        self._is_running = False
        if self._turns is not None:
            self._turns.close()
            self._turns = None
        if self._keeper is not None:
            self._keeper.stop()
            self._mark_over()

    def _fill(self) -> None:
        started = noted = time.monotonic()
        while self.more_may_come() and not self._is_full():
            time.sleep(min(0.2, self._poll_s))
            if time.monotonic() - noted > _FILL_NOTE_S:
                noted = time.monotonic()
                logger.info("the pool holds %d samples so far", self.report.total("accepted"))
        self.fill_s = time.monotonic() - started
        self._keeper.stop()  # their device is the trainer's from now on
        drawn = self.report.total("accepted")
        logger.info("the pool was filled to %d samples in %.0f s, now training begins", drawn, self.fill_s)

    def _is_full(self) -> bool:
        statuses = self.report.statuses if self.report else ()
        return bool(statuses) and all(status.state == "full" for status in statuses)

    def _note(self, report: ServiceReport) -> None:
        self.report = report
        self.messages.extend(report.messages)
        if report.is_over:
            self._mark_over()

    def _mark_over(self) -> None:
        if self._pool_dir is not None:
            with contextlib.suppress(OSError):
                mark_generating(self._pool_dir, False)

    def _tell(self, message: str) -> None:
        logger.warning(message)
        self.messages.append(message)
