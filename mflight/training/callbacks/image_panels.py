"""Panels of synthetic images and of predictions, with their masks, in wandb and TensorBoard."""

from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from pydantic import Field, validate_call
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from mflight.data.categories import Categories
from mflight.data.target import Target
from mflight.detection.results import predictions_to_rle
from mflight.functional.masks import rle_decode

_WANDB_MASK_VALUES = 256


Panel = tuple[Tensor, Tensor, Tensor, str]
"""``float32[3, H, W]`` in [0, 1], masks ``[N, H, W]``, labels ``int64[N]``, caption."""


class ImagePanels(L.Callback):
    """Logs ``panels/synthetic`` while training and ``panels/predictions`` at each validation.

    Args:
        num_images: images in a panel.
        every_n_steps: training steps between two panels of synthetic images.
        min_score: predictions below it are not drawn, in [0, 1].
    """

    @validate_call
    def __init__(
        self,
        *,
        num_images: Annotated[int, Field(ge=1)] = 8,
        every_n_steps: Annotated[int, Field(ge=1)] = 200,
        min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3,
    ):
        self._num_images, self._every_n_steps, self._min_score = num_images, every_n_steps, min_score
        self._synthetic: dict[str, tuple[Tensor, Target]] = {}
        self._predicted: list[tuple[Tensor, dict[str, Tensor]]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the latest synthetic images, and log them from time to time."""
        if not _panel_loggers(trainer):
            return
        for image, target in zip(*batch, strict=True):
            if target.get("is_synthetic", False):
                self._synthetic.pop(target["sample_id"], None)
                self._synthetic[target["sample_id"]] = (image, target)
        while len(self._synthetic) > self._num_images:
            self._synthetic.pop(next(iter(self._synthetic)))
        if self._synthetic and trainer.global_step % self._every_n_steps == 0:
            panels = [
                (image, target["masks"], target["labels"], sample_id)
                for sample_id, (image, target) in self._synthetic.items()
            ]
            self._log(trainer, "panels/synthetic", panels)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep the first images with what was found in them."""
        if not _panel_loggers(trainer) or not isinstance(outputs, list):
            return
        for image, prediction in zip(batch[0], outputs, strict=True):
            if len(self._predicted) < self._num_images:
                self._predicted.append((image, prediction))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what was found."""
        panels = []
        for number, (image, prediction) in enumerate(self._predicted):
            kept = prediction["scores"] > self._min_score
            keys = prediction.keys() & {"boxes", "labels", "roi_masks", "masks"}
            confident = {key: prediction[key][kept] for key in keys}
            rles = predictions_to_rle(confident, tuple(image.shape[-2:]))
            masks = (
                torch.from_numpy(np.stack([rle_decode(rle) for rle in rles]))
                if rles
                else torch.zeros(0, 1, 1)
            )
            panels.append((image, masks, confident["labels"], f"validation image {number}"))
        self._predicted.clear()
        if panels:
            self._log(trainer, "panels/predictions", panels)

    def _log(self, trainer: L.Trainer, key: str, panels: list[Panel]) -> None:
        class_labels = _class_labels(getattr(trainer.datamodule, "categories", None))
        for logger in _panel_loggers(trainer):
            if isinstance(logger, TensorBoardLogger):
                for number, (image, masks, *_) in enumerate(panels):
                    picture = _with_masks(image, masks)
                    logger.experiment.add_image(f"{key}/{number}", picture, trainer.global_step)
                continue
            logger.log_image(key, **_wandb_panels(panels, class_labels))


def _panel_loggers(trainer: L.Trainer) -> list[Logger]:
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]


def _wandb_panels(panels: list[Panel], class_labels: dict[int, str]) -> dict[str, list[Any]]:
    """Return what ``WandbLogger.log_image`` takes: masks that can be toggled, as far as wandb has values.

    With more classes the masks are drawn into the pictures, and the captions name the classes.
    """
    captions = [caption for *_, caption in panels]
    if len(class_labels) > _WANDB_MASK_VALUES:
        names = [
            ", ".join(class_labels[label] for label in labels.unique().tolist()) for *_, labels, _ in panels
        ]
        return {
            "images": [_to_pixels(_with_masks(image, masks)) for image, masks, *_ in panels],
            "caption": [f"{caption}: {own}" for caption, own in zip(captions, names, strict=True)],
        }
    masks = [
        {"instances": {"mask_data": _label_map(image, masks, labels), "class_labels": class_labels}}
        for image, masks, labels, _ in panels
    ]
    pictures = [_to_pixels(_to_bytes(image)) for image, *_ in panels]
    return {"images": pictures, "caption": captions, "masks": masks}


def _class_labels(categories: Categories | None) -> dict[int, str]:
    names = {label: category.name for label, category in enumerate(categories or (), start=1)}
    return {0: "background", **names}


def _label_map(image: Tensor, masks: Tensor, labels: Tensor) -> np.ndarray:
    """Return ``uint8[H, W]``: the label shown at each pixel, later instances on top."""
    drawn = np.zeros(tuple(image.shape[-2:]), dtype=np.uint8)
    for mask, label in zip(masks.cpu().numpy(), labels.tolist(), strict=True):
        drawn[mask.astype(bool)] = label
    return drawn


def _with_masks(image: Tensor, masks: Tensor) -> Tensor:
    """Return ``uint8[3, H, W]``: each instance tinted in a colour of its own; ``image`` is in [0, 1]."""
    picture = _to_bytes(image)
    return draw_segmentation_masks(picture, masks.cpu().bool(), alpha=0.5) if len(masks) else picture


def _to_bytes(image: Tensor) -> Tensor:
    return (image.cpu().clamp(0, 1) * 255).to(torch.uint8)


def _to_pixels(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()
