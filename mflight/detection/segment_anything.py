"""Segment Anything (SAM) through transformers: one mask for each box. The only place that knows it.

It is a network that finds the pixels of an object, as the detector is, so it lives on the detectors' floor:
the evaluation of masks and the labeler of generated images get it handed in.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import validate_call

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SegmentAnything:
    """Asks a SAM checkpoint for the mask of the object in each box.

    A checkpoint that is not there is a FileNotFoundError, one of another model a ValueError.

    Args:
        checkpoint: hub id, such as ``facebook/sam-vit-huge``, or a folder; transformers' ``SamModel`` format.
        device: torch's name of the device; ``"auto"`` is the first GPU, else the CPU, and ``"meta"`` looks at
            the checkpoint without reading its weights.
        dtype: precision of the weights; ``"auto"`` is float16 on a GPU and float32 elsewhere.
        max_boxes: boxes of an image that are decoded together; bounds the memory.

    Raises:
        ValueError: if ``max_boxes`` is below 1.

    Source:
        Kirillov et al., "Segment Anything", arXiv:2304.02643.
    """

    @validate_call
    def __init__(
        self,
        *,
        checkpoint: str | Path,
        device: str = "auto",
        dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
        max_boxes: int = 64,
    ) -> None:
        if max_boxes < 1:
            raise ValueError(f"max_boxes must be at least 1, got {max_boxes}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.checkpoint, self.max_boxes = str(checkpoint), max_boxes
        self._device = torch.device(device)
        is_gpu = self._device.type == "cuda"
        self._dtype = _DTYPES[("float16" if is_gpu else "float32") if dtype == "auto" else dtype]
        self._model, self._processor = _load(self.checkpoint, reads_weights=self._device.type != "meta")
        self._model = self._model.to(self._device, self._dtype).eval()

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Segment the objects in some boxes of one image; the image is encoded once.

        SAM's single-mask output is taken: a box says which object is meant.

        Args:
            image: ``uint8[H, W, 3]``, RGB.
            boxes_xyxy: ``float[N, 4]`` in pixels of the image.

        Returns:
            ``bool[N, H, W]``, the masks in the order of the boxes.

        Raises:
            ValueError: if image or boxes are of another form.
        """
        boxes_xyxy = np.asarray(boxes_xyxy, dtype=np.float32)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image must be uint8[H, W, 3], got {image.dtype}{list(image.shape)}")
        if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4:
            raise ValueError(f"boxes_xyxy must be float[N, 4], got shape {list(boxes_xyxy.shape)}")
        if len(boxes_xyxy) == 0:
            return np.zeros((0, *image.shape[:2]), dtype=bool)
        inputs = self._processor(images=image, input_boxes=[boxes_xyxy.tolist()], return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device, self._dtype)
        embeddings = self._model.get_image_embeddings(pixels)
        masks = [
            self._decode(embeddings, boxes, inputs)
            for boxes in inputs["input_boxes"][0].split(self.max_boxes)  # [n, 4], in pixels of the input
        ]
        return np.concatenate(masks)

    def _decode(self, embeddings: torch.Tensor, boxes: torch.Tensor, inputs: Any) -> np.ndarray:
        output = self._model(
            image_embeddings=embeddings,
            input_boxes=boxes[None].to(self._device, self._dtype),
            multimask_output=False,
        )
        (masks,) = self._processor.image_processor.post_process_masks(
            output.pred_masks.float(), inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        return masks[:, 0].cpu().numpy()  # [n, H, W]


def load_refiner(*, checkpoint: str | Path | None, device: str = "auto") -> SegmentAnything | None:
    """Open the SAM checkpoint that redraws generated masks; ``None`` where the setting names none."""
    return None if checkpoint is None else SegmentAnything(checkpoint=checkpoint, device=device)


def _load(checkpoint: str, *, reads_weights: bool) -> tuple[Any, Any]:
    from transformers import AutoConfig, SamModel, SamProcessor  # seconds; nobody else needs it

    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if config.model_type != "sam":
            raise ValueError(
                f"{checkpoint} must hold a SAM model, it holds one of type {config.model_type!r}"
            )
        processor = SamProcessor.from_pretrained(checkpoint)
        if reads_weights:
            return SamModel.from_pretrained(checkpoint), processor
        with torch.device("meta"):
            return SamModel(config), processor
    except OSError as error:
        raise FileNotFoundError(
            f"no SAM checkpoint: {checkpoint} must be a folder in transformers' SamModel format or a hub id "
            f"({str(error).splitlines()[0]})"
        ) from error
