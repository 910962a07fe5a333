"""Training and drawing on one GPU: who works on it when."""

from typing import Annotated, Any, Literal

import lightning as L
import torch
from pydantic import Field, validate_call

from mflight.synthesis.turns import Turns
from mflight.training.datamodule import MixedDataModule

Sharing = Literal["take_turns", "fill_first"]
_PATIENCE_S = 0.25


class SharedDevice(L.Callback):
    """Hands the only GPU of a host over between training and the generators of a :class:`MixedDataModule`.

    Args:
        sharing: the generators fill the pool before training begins (``fill_first``), or both take turns,
            for which their settings need ``takes_turns``.
        turn_steps: training steps between two turns of the generators under ``take_turns``.
    """

    @validate_call
    def __init__(self, *, sharing: Sharing, turn_steps: Annotated[int, Field(ge=1)] = 16):
        self._sharing, self._turn_steps = sharing, turn_steps
        self._turns: Turns | None = None
        self._num_batches = 0
        self.fill_s = 0.0
        self.turns_s = 0.0

    @property
    def figures(self) -> dict[str, float]:
        """What sharing cost the training so far, by the name under which it is logged."""
        return {"synthesis/fill_s": self.fill_s, "synthesis/turns_s": self.turns_s}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the device, or wait until the pool is filled."""
        data = trainer.datamodule
        if stage != "fit" or not isinstance(data, MixedDataModule) or data.synthetic is None:
            return
        if self._sharing == "fill_first":
            self.fill_s = data.synthetic.fill()
        else:
            self._turns = Turns(data.synthetic.stream.folder)
            self._turns.take()
            data.synthetic.while_waiting = self._hand_over

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hand the device over when a turn of training has ended."""
        self._num_batches += 1
        if self._turns is None or self._num_batches % self._turn_steps:
            return
        if trainer.datamodule.synthetic.more_may_come():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.turns_s += self._hand_over()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the device to the generators, which could not stop while they wait for it."""
        self._release()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the device to the generators, which could not stop while they wait for it."""
        self._release()

    def _hand_over(self) -> float:
        return self._turns.hand_over(_PATIENCE_S) if self._turns is not None else 0.0

    def _release(self) -> None:
        if self._turns is not None:
            self._turns.close()
            self._turns = None


def sharing_figures(trainer: L.Trainer) -> dict[str, float]:
    """Return what it cost a training to share its device; empty where the generators have their own."""
    shared = next((each for each in trainer.callbacks if isinstance(each, SharedDevice)), None)
    return {} if shared is None else shared.figures
