import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from mflight.training.callbacks.weight_averaging import WeightAveraging
from tests.unit.training.foreign import stock_trainer


class Falling(L.LightningModule):
    """One weight that falls by 1 at each step, and a count of the steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.validated = []

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.weight.item(), self.steps.item()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, max_steps, checkpoint=None):
    module = Falling()
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    callbacks = [checkpoints, WeightAveraging(decay=0.5)]
    trainer = stock_trainer(folder, callbacks=callbacks, max_steps=max_steps, check_val_every_n_epoch=1)
    loader = DataLoader(torch.zeros(2, 1))
    trainer.fit(module, loader, DataLoader(torch.zeros(1, 1)), ckpt_path=checkpoint)
    return trainer, module


AVERAGES = [-1.0, -1.5, -2.25, -3.125]  # each is the mean of the one before and of -1, -2, -3, -4


def test_validation_and_checkpoints_have_the_average_and_training_goes_on_without(tmp_path):
    trainer, module = fit(tmp_path, 4)
    assert module.validated == [(AVERAGES[1], 2), (AVERAGES[3], 4)]
    assert module.weight.item() == -4.0
    for step, average in enumerate(AVERAGES, start=1):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=False)
        assert saved["state_dict"]["weight"].item() == average
        assert saved["current_model_state"]["weight"].item() == -step
        assert saved["state_dict"]["steps"] == step  # counted, not averaged
    trainer.validate(module, DataLoader(torch.zeros(1, 1)), verbose=False)
    assert module.validated[-1] == (AVERAGES[3], 4)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    after = torch.load(tmp_path / "after.ckpt", weights_only=False)
    assert after["state_dict"]["weight"].item() == AVERAGES[3]
    assert after["current_model_state"]["weight"].item() == -4.0


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_average(tmp_path, step):
    fit(tmp_path, step)
    _, resumed = fit(tmp_path / "resumed", 4, checkpoint=tmp_path / f"step={step}.ckpt")
    saved = torch.load(tmp_path / "resumed" / "step=4.ckpt", weights_only=False)
    assert saved["state_dict"]["weight"].item() == AVERAGES[3] and resumed.weight.item() == -4.0


def test_a_checkpoint_of_the_weights_only_is_refused(tmp_path):
    best = ModelCheckpoint(tmp_path, filename="best", save_weights_only=True)
    trainer = stock_trainer(tmp_path, callbacks=[best, WeightAveraging()], max_steps=1)
    with pytest.raises(ValueError, match=r"save_weights_only=false .*got true for 'best'"):
        trainer.fit(Falling(), DataLoader(torch.zeros(2, 1)))


def test_decay_must_be_below_one():
    with pytest.raises(ValueError, match="decay"):
        WeightAveraging(decay=1.0)
