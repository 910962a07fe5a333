from io import BytesIO
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from mflight.data.categories import Categories, Category
from mflight.training.callbacks.image_panels import ImagePanels

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def synthetic_batch(label):
    """One real image, and a grey synthetic one with an instance on its upper half."""
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[0, :4] = 1
    target = {"is_synthetic": True, "sample_id": "w0-1", "masks": masks, "labels": torch.tensor([label])}
    return [torch.full((3, 8, 8), 0.5), torch.zeros(3, 8, 8)], [target, {"image_id": 1}]


def wandb_picture(folder, label, num_classes):
    """Log a panel offline; return the picture and its masks, as wandb has kept them."""
    logger = WandbLogger(save_dir=folder, offline=True)
    trainer = L.Trainer(accelerator="cpu", logger=logger, default_root_dir=folder)
    categories = Categories([Category(number, f"class_{number}") for number in range(1, num_classes + 1)])
    trainer.datamodule = SimpleNamespace(categories=categories)
    ImagePanels(every_n_steps=1).on_train_batch_end(trainer, None, None, synthetic_batch(label), 0)
    logger.experiment.finish()
    media = next(folder.glob("wandb/offline-run-*/files/media/images"))
    (picture,) = media.glob("panels/*.png")
    return np.asarray(Image.open(picture)), [
        np.asarray(Image.open(mask)) for mask in media.glob("mask/**/*.png")
    ]


def test_wandb_gets_the_image_and_its_mask(tmp_path):
    picture, (mask,) = wandb_picture(tmp_path, label=24, num_classes=24)
    assert (picture == 127).all() and picture.shape == (8, 8, 3)
    assert (mask[:4] == 24).all() and not mask[4:].any()


def test_wandb_gets_the_masks_in_the_picture_where_it_has_no_value_for_each_class(tmp_path):
    picture, masks = wandb_picture(tmp_path, label=700, num_classes=1203)
    assert (picture[4:] == 127).all() and not (picture[:4] == 127).all() and not masks


def test_tensorboard_gets_the_synthetic_images_with_their_masks(tmp_path):
    trainer = L.Trainer(accelerator="cpu", logger=TensorBoardLogger(tmp_path, name="", version="tb"))
    ImagePanels(every_n_steps=1).on_train_batch_end(trainer, None, None, synthetic_batch(3), 0)
    trainer.loggers[0].finalize("success")
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert events.Tags()["images"] == ["panels/synthetic/0"]
    (event,) = events.Images("panels/synthetic/0")
    assert (event.width, event.height) == (8, 8)
    shown = Image.open(BytesIO(event.encoded_image_string))
    assert shown.getpixel((4, 7)) == (127, 127, 127) and shown.getpixel((4, 0)) != (127, 127, 127)
