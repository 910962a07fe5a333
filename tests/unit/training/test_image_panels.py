from io import BytesIO

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from mflight.training.callbacks.image_panels import ImagePanels

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_tensorboard_gets_the_synthetic_images_with_their_masks(tmp_path):
    trainer = L.Trainer(accelerator="cpu", logger=TensorBoardLogger(tmp_path, name="", version="tb"))
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[0, :4] = 1
    target = {"is_synthetic": True, "sample_id": "w0-1", "masks": masks, "labels": torch.tensor([3])}
    batch = ([torch.full((3, 8, 8), 0.5), torch.zeros(3, 8, 8)], [target, {"image_id": 1}])
    ImagePanels(every_n_steps=1).on_train_batch_end(trainer, None, None, batch, 0)
    trainer.loggers[0].finalize("success")
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert events.Tags()["images"] == ["panels/synthetic/0"]
    (event,) = events.Images("panels/synthetic/0")
    assert (event.width, event.height) == (8, 8)
    shown = Image.open(BytesIO(event.encoded_image_string))
    assert shown.getpixel((4, 7)) == (127, 127, 127) and shown.getpixel((4, 0)) != (127, 127, 127)
