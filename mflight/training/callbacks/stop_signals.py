"""SIGTERM and Ctrl-C end a training between two batches, on all ranks at the same step, with a checkpoint."""

import contextlib
import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE_S = 20.0  # for the end of a batch; Slurm and Kubernetes kill after 30


class Stopped(SystemExit):
    """Ends a run that a signal has stopped, with 128 and the signal's number as exit status.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class StopSignals(L.Callback):
    """Turns SIGTERM and SIGINT into a checkpoint and a :class:`Stopped`; use it as a context around the run.

    The handler only takes a note. After each batch the ranks agree on whether any of them has one, save
    together and stop before the next: nothing collective happens inside of a handler, as it does in
    Lightning's own. Before and after the training a signal stops at once, and so does a batch that does not
    end, or a second Ctrl-C on a single rank. A checkpoint is also written before each validation, so that a
    signal may end that at once. It has to come last of all callbacks but those that write checkpoints.

    Args:
        checkpoint: the file to write.
    """

    def __init__(self, *, checkpoint: Path):
        self._checkpoint = checkpoint
        self._number: int | None = None
        self._is_training = self._is_alone = self._has_saved = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        numbers = (*_SIGNALS, signal.SIGALRM)
        self._before = {number: signal.getsignal(number) for number in numbers}
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_training()
        with contextlib.suppress(ValueError):
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the handlers back from Lightning, which has set its own."""
        self._install()
        self._is_training, self._is_alone = True, trainer.world_size == 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save if any rank has been told to stop; the figures of this step are logged after this."""
        if trainer.strategy.reduce_boolean_decision(self._number is not None, all=False):
            number = self._number = self._number or signal.SIGTERM
            logger.warning(
                "%s: the run is saved at step %d", signal.Signals(number).name, trainer.global_step
            )
            trainer.save_checkpoint(self._checkpoint)
            self._has_saved = True
        elif trainer.is_last_batch:
            trainer.save_checkpoint(self._checkpoint)

    def on_train_batch_start(self, *_: Any) -> None:
        """Stop at the step at which all ranks have saved."""
        if self._has_saved:
            raise Stopped(self._number)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Stop this rank if it has been told to; ranks may have different numbers of batches here."""
        if self._is_training and self._number is not None:
            raise Stopped(self._number)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on a signal stops at once."""
        self._end_training()
        if self._number is not None:
            raise Stopped(self._number)

    def on_exception(self, *_: Any) -> None:
        """From now on a signal stops at once."""
        self._end_training()

    def _install(self) -> None:
        with contextlib.suppress(ValueError):  # in a thread there is no signal to take
            for number in _SIGNALS:
                signal.signal(number, self._take)

    def _end_training(self) -> None:
        self._is_training = False
        with contextlib.suppress(ValueError):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _take(self, number: int, frame: FrameType | None) -> None:
        is_second_wish = self._number == number == signal.SIGINT and self._is_alone
        if not self._is_training or is_second_wish:
            raise Stopped(number)
        if self._number is None:
            self._number = number
            signal.signal(signal.SIGALRM, self._lose_patience)
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)

    def _lose_patience(self, number: int, frame: FrameType | None) -> None:
        raise Stopped(self._number)
