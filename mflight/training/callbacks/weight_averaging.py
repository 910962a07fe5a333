"""An exponential moving average (EMA) of the weights."""

from typing import Annotated

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from pydantic import Field, validate_call


class WeightAveraging(EMAWeightAveraging):
    """Lightning's moving average, for runs that are validated, resumed and made longer.

    Validation is done with the averaged weights; a checkpoint's ``state_dict`` holds them, and its
    ``current_model_state`` the weights that training goes on from. What a loss or a normalisation layer has
    counted is taken over as it is, not averaged. Unlike Lightning's, the module keeps the trained weights
    at the end of training, so that the last checkpoint can be resumed with a larger ``trainer.max_steps``.
    A checkpoint callback that keeps the weights only is a ValueError: those are not the averaged ones, which
    it chooses by.

    Args:
        decay: share of the average that stays at each update, in [0, 1).
        update_every_n_steps: training steps between two updates.
        update_starting_at_step: the first one.
    """

    @validate_call
    def __init__(
        self,
        *,
        decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9998,
        update_every_n_steps: Annotated[int, Field(ge=1)] = 1,
        update_starting_at_step: Annotated[int, Field(ge=0)] = 0,
    ):
        super().__init__(
            use_buffers=False,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copy the module when training begins."""
        for callback in trainer.checkpoint_callbacks:
            if stage == "fit" and isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
                raise ValueError(
                    "averaged weights need checkpoints with save_weights_only=false (callbacks=ema sets "
                    f"callbacks.best.save_weights_only=false), got true for {callback.filename!r}"
                )
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the trained weights in the module."""
