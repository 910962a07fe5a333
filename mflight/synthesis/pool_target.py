"""What the detector trains on, decoded from a stored sample: its image and its target."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from mflight.data.categories import Categories
from mflight.data.target import Target
from mflight.functional.masks import RLE, mask_areas, rle_decode_box
from mflight.synthesis.pool.index import PoolError
from mflight.synthesis.pool.packing import EncodedSample


def to_target(
    sample: EncodedSample, categories: Categories, index: int, background_loss: bool = True
) -> tuple[Tensor, Target]:
    """Turn a sample of the pool into what the detector trains on.

    Args:
        sample: image file, annotations with ``category_id`` and RLE, regions.
        categories: give the labels.
        index: number of the sample's request; ``-1 - index`` becomes the ``image_id``, as of no real image.
        background_loss: whether the background is learnt from; if not, the whole image is to be ignored
            wherever it matches no instance.

    Returns:
        ``uint8[3, H, W]`` as RGB and the target; boxes and areas are those of the masks. The classes that the
        request did not name are unknown, not absent, so ``negative_labels`` is empty. A rejected region of a
        rescued canvas shows an object without a mask: its box is in ``ignore_boxes``, its class in
        ``not_exhaustive_labels``. It is a PoolError if the class of an annotation or of a rejected region is
        none of ``categories``, or if a mask is empty or of another size.
    """
    image = _decode(sample)
    size_hw = tuple(image.shape[1:])
    labels = _labels(sample, sample.annotations, categories)
    masks, boxes = _draw_masks(sample, size_hw)
    rejected = [region for region in sample.regions if region.get("rejected")]
    rejected_labels = torch.tensor(_labels(sample, rejected, categories), dtype=torch.int64)
    ignore_boxes = [region["box"] for region in rejected]
    if not background_loss:
        ignore_boxes = [[0, 0, size_hw[1], size_hw[0]]]
    return image, {
        "boxes": torch.from_numpy(boxes.astype(np.float32)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(masks),
        "image_id": -1 - index,
        "area": torch.from_numpy(mask_areas(masks).astype(np.float32)),
        "iscrowd": torch.zeros(len(masks), dtype=torch.int64),
        "is_synthetic": True,
        "negative_labels": torch.zeros(0, dtype=torch.int64),
        "not_exhaustive_labels": rejected_labels.unique(),
        "ignore_boxes": torch.tensor(ignore_boxes, dtype=torch.float32).reshape(-1, 4),
        "sample_id": sample.sample_id,
    }


def _decode(sample: EncodedSample) -> Tensor:
    """Return the image ``uint8[3, H, W]``, pixel by pixel in memory; Pillow and a copy take longer."""
    try:
        picture = torch.frombuffer(bytearray(sample.picture), dtype=torch.uint8)
        image = decode_image(picture, ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise PoolError(f"sample {sample.sample_id}: its image cannot be decoded ({error})") from error
    if image.dtype != torch.uint8:
        raise PoolError(f"sample {sample.sample_id}: its image must have 8 bits a channel, got {image.dtype}")
    return image


def _draw_masks(sample: EncodedSample, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks ``uint8[N, H, W]`` and their boxes ``int64[N, 4]`` xyxy, in px."""
    rles = [annotation["segmentation"] for annotation in sample.annotations]
    masks = np.zeros((len(rles), *size_hw), dtype=np.uint8)
    boxes = np.zeros((len(rles), 4), dtype=np.int64)
    for number, rle in enumerate(rles):
        try:
            part, (x1, y1, x2, y2) = _draw_mask(rle, size_hw)
        except ValueError as error:
            raise PoolError(f"sample {sample.sample_id}: {error}") from error
        boxes[number] = x1, y1, x2, y2
        masks[number, y1:y2, x1:x2] = part
    return masks, boxes


def _draw_mask(rle: RLE, size_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Draw a mask within its box; one of another size is refused before, however large it says it is."""
    if tuple(rle["size"]) != size_hw:
        raise ValueError(f"a mask must be non-empty {list(size_hw)}, got {list(rle['size'])}")
    part, box = rle_decode_box(rle)
    if not part.size:
        raise ValueError(f"a mask must be non-empty {list(size_hw)}, got {list(rle['size'])}, empty")
    return part, box


def _labels(sample: EncodedSample, entries: list[dict[str, Any]], categories: Categories) -> list[int]:
    """Return the label of each entry with a ``category_id``."""
    try:
        return [categories.label_of(entry["category_id"]) for entry in entries]
    except KeyError as error:
        raise PoolError(f"sample {sample.sample_id}: {error.args[0]}") from error
