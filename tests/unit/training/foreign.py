"""Somebody else's LightningModule: it knows nothing of mflight."""

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class ForeignModule(L.LightningModule):
    """Counts objects by the mean colour, and remembers what it was given."""

    def __init__(self, fail_at_step=None):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.fail_at_step = fail_at_step
        self.batches, self.num_validated, self.num_transfers = [], 0, 0

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.num_transfers += 1
        return batch

    def training_step(self, batch, batch_idx):
        images, targets = batch
        if self.global_step == self.fail_at_step:
            raise RuntimeError(f"it fails at step {self.global_step}")
        self.batches.append([(t["image_id"], t["boxes"].sum().item()) for t in targets])
        colours = torch.stack([image.mean(dim=(1, 2)) for image in images])
        wanted = torch.tensor([[float(len(t["labels"]))] for t in targets])
        return torch.nn.functional.mse_loss(self.layer(colours), wanted)

    def validation_step(self, batch, batch_idx):
        self.num_validated += len(batch[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def stock_trainer(folder, **settings):
    """A Trainer as anybody would write it, which keeps a checkpoint of every step."""
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    defaults = {
        "accelerator": "cpu",
        "max_epochs": -1,
        "callbacks": [every_step],
        "logger": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**{**defaults, "enable_progress_bar": False, "enable_model_summary": False, **settings})
