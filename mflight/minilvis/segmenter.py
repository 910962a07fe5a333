"""A small segmenter of drawn scenes: it says what generated masks are worth, and what they lie on."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mflight.functional.masks import label_components
from mflight.minilvis.patch_codes import to_unit
from mflight.minilvis.scene import draw_placement, draw_scene
from mflight.minilvis.species import SPECIES
from mflight.minilvis.textures import BACKGROUNDS

SIDE_PX = 128
_RADIUS_RANGE_PX = (12.0, 31.0)  # from the real images' small objects to the regions' large ones
_MARGIN_RATIO = 0.25  # of a box's sides, by which it is enlarged before an object is looked for in it


class Segmenter(nn.Module):
    """Names the class of each pixel, 0 for background; trained on balanced drawn scenes only.

    As a function it is what ``mflight.evaluation.mask_quality.compare_masks`` asks: given an image and boxes
    it returns the masks of the objects in them.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 96)
        self.stem = _block(3, widths[0], stride=2)
        self.down = nn.ModuleList(_block(before, after, stride=2) for before, after in pairwise(widths))
        self.up = nn.ModuleList(
            _block(deep + shallow, shallow, stride=1) for shallow, deep in reversed(list(pairwise(widths)))
        )
        self.classifier = nn.Conv2d(widths[0], len(SPECIES) + 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``float32[B, C + 1, H, W]`` logits of images ``float32[B, 3, H, W]`` in [-1, 1]."""
        features = [self.stem(images)]
        for block in self.down:
            features.append(block(features[-1]))
        deep = features.pop()
        for block in self.up:
            shallow = features.pop()
            deep = block(torch.cat([F.interpolate(deep, size=shallow.shape[2:]), shallow], dim=1))
        return F.interpolate(self.classifier(deep), size=images.shape[2:], mode="bilinear")

    @torch.no_grad()
    def classes(self, image: np.ndarray) -> np.ndarray:
        """Return the class index of each pixel, ``int64[H, W]``, 0 for background, of ``uint8[H, W, 3]``."""
        return self(to_unit(image[None])).argmax(dim=1)[0].numpy()

    def find(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Find the object in each box.

        Args:
            image: ``uint8[H, W, 3]``.
            boxes: ``float[N, 4]``, xyxy px.

        Returns:
            ``bool[N, H, W]``: the largest 4-connected component of foreground in the box, enlarged by a
            quarter of its sides; without any foreground it is empty.
        """
        foreground = self.classes(image) > 0
        masks = np.zeros((len(boxes), *foreground.shape), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            dx, dy = _MARGIN_RATIO * (x2 - x1), _MARGIN_RATIO * (y2 - y1)
            rows, columns = (
                slice(max(0, int(y1 - dy)), int(y2 + dy)),
                slice(max(0, int(x1 - dx)), int(x2 + dx)),
            )
            components, areas_px = label_components(foreground[rows, columns])
            if len(areas_px):
                mask[rows, columns] = components == 1 + areas_px.argmax()
        return masks


def train_segmenter(*, num_steps: int = 1500, batch_size: int = 8, seed: int = 0) -> Segmenter:
    """Train a segmenter on drawn scenes.

    Light noise and blur on its examples keep it from asking for sharper images than the autoencoder gives.

    Args:
        num_steps: of training.
        batch_size: scenes a step.
        seed: of scenes and weights.

    Returns:
        The segmenter, ready to be asked.
    """
    torch.manual_seed(seed)
    draws = np.random.default_rng(seed)
    segmenter = Segmenter()
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps)
    for _ in tqdm(range(num_steps), desc="segmenter", mininterval=10):
        scenes = [draw_labeled_scene(draws) for _ in range(batch_size)]
        images = to_unit(np.stack([image for image, _ in scenes]))
        if draws.random() < 0.5:
            images = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        images = images + 0.1 * draws.random() * torch.randn_like(images)
        classes = torch.from_numpy(np.stack([classes for _, classes in scenes]))
        loss = F.cross_entropy(segmenter(images), classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return segmenter.eval()


def draw_labeled_scene(draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one to five objects of any classes: an image ``uint8[H, W, 3]`` and classes ``int64[H, W]``."""
    size_hw = (SIDE_PX, SIDE_PX)
    chosen = draws.integers(len(SPECIES), size=draws.integers(1, 6))
    placements = [draw_placement(SPECIES[index], size_hw, _RADIUS_RANGE_PX, draws) for index in chosen]
    background = list(BACKGROUNDS)[draws.integers(len(BACKGROUNDS))]
    scene = draw_scene(placements, background, size_hw, draws)
    classes = np.zeros(size_hw, dtype=np.int64)
    for index, mask in zip(chosen, scene.masks, strict=True):
        classes[mask] = 1 + index
    return scene.image, classes


def _block(before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1),
        nn.GroupNorm(8, after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(8, after),
        nn.ReLU(),
    )
