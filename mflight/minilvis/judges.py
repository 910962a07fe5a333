"""Two judges of generated images that have only seen drawn ones: which class it is, and where objects are."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mflight.functional.masks import label_components
from mflight.minilvis.autoencoder import to_unit
from mflight.minilvis.scene import draw_placement, draw_scene
from mflight.minilvis.species import SPECIES
from mflight.minilvis.textures import BACKGROUNDS

_SINGLE_PX, _SCENE_PX = 64, 128  # sides of the images that judge and segmenter see
_RADIUS_RANGE_PX = (12.0, 31.0)  # from the real images' small objects to the regions' large ones
_MARGIN_RATIO = 0.25  # of a box's sides, by which it is enlarged before an object is looked for in it

Network = TypeVar("Network", bound=nn.Module)


class Judge(nn.Module):
    """Names the class of the one object in a 64 px image; trained on drawn scenes only."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1] * (_SINGLE_PX // 16) ** 2, len(SPECIES))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``float32[B, C]`` logits of images ``float32[B, 3, 64, 64]`` in [-1, 1]."""
        return self.classifier(self.features(images).flatten(1))


def draw_examples(count: int, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw single objects: images ``float32[count, 3, 64, 64]`` and class indices ``int64[count]``."""
    images, classes = [], draws.integers(len(SPECIES), size=count)
    for index in classes:
        placement = draw_placement(SPECIES[index], (_SINGLE_PX, _SINGLE_PX), (15.0, 31.0), draws)
        background = list(BACKGROUNDS)[draws.integers(len(BACKGROUNDS))]
        images.append(draw_scene([placement], background, (_SINGLE_PX, _SINGLE_PX), draws).image)
    return to_unit(np.stack(images)), torch.from_numpy(classes)


def train_judge(*, num_steps: int = 600, batch_size: int = 32, seed: int = 0) -> tuple[Judge, float]:
    """Train a judge, and return it with its accuracy, in [0, 1], on 480 unseen drawn objects."""
    judge = _train(
        Judge,
        lambda draws: draw_examples(batch_size, draws),
        F.cross_entropy,
        learning_rate=2e-3,
        num_steps=num_steps,
        seed=seed,
    )
    images, classes = draw_examples(480, np.random.default_rng(seed + 1))
    return judge, (judge_classes(judge, images) == classes).float().mean().item()


@torch.no_grad()
def judge_classes(judge: Judge, images: Tensor) -> Tensor:
    """Return ``int64[B]``: the class index that the judge sees in each image ``float32[B, 3, 64, 64]``."""
    return judge(images).argmax(dim=1)


def accuracy_by_class(asked: Tensor, seen: Tensor) -> dict[str, float]:
    """Return, by class name, the share of images in which the judge sees the class asked for."""
    right = Counter(asked[asked == seen].tolist())
    return {
        SPECIES[index].name: right[index] / count for index, count in sorted(Counter(asked.tolist()).items())
    }


class Segmenter(nn.Module):
    """Tells objects from background, pixel by pixel; trained on balanced drawn scenes only."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 96)
        self.stem = _block(3, widths[0], stride=2)
        self.down = nn.ModuleList(_block(before, after, stride=2) for before, after in pairwise(widths))
        self.up = nn.ModuleList(
            _block(deep + shallow, shallow, stride=1) for shallow, deep in reversed(list(pairwise(widths)))
        )
        self.classifier = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of an object, ``float32[B, 1, H, W]``, of ``float32[B, 3, H, W]`` in [-1, 1]."""
        features = [self.stem(images)]
        for block in self.down:
            features.append(block(features[-1]))
        deep = features.pop()
        for block in self.up:
            shallow = features.pop()
            deep = block(torch.cat([F.interpolate(deep, size=shallow.shape[2:]), shallow], dim=1))
        return F.interpolate(self.classifier(deep), size=images.shape[2:], mode="bilinear")

    @torch.no_grad()
    def objects(self, image: np.ndarray) -> np.ndarray:
        """Return ``bool[H, W]``: where an image ``uint8[H, W, 3]`` shows any object."""
        return (self(to_unit(image[None]))[0, 0] > 0).numpy()

    def find(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Find the object in each box, as ``mflight.evaluation.mask_quality.compare_masks`` asks for it.

        Args:
            image: ``uint8[H, W, 3]``.
            boxes: ``float[N, 4]``, xyxy px.

        Returns:
            ``bool[N, H, W]``: the largest 4-connected object in the box, enlarged by a
            quarter of its sides; where nothing is found it is empty.
        """
        objects = self.objects(image)
        masks = np.zeros((len(boxes), *objects.shape), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            dx, dy = _MARGIN_RATIO * (x2 - x1), _MARGIN_RATIO * (y2 - y1)
            window = np.s_[max(0, int(y1 - dy)) : int(y2 + dy), max(0, int(x1 - dx)) : int(x2 + dx)]
            components, areas_px = label_components(objects[window])
            if len(areas_px):
                mask[window] = components == 1 + areas_px.argmax()
        return masks


def train_segmenter(*, num_steps: int = 600, batch_size: int = 8, seed: int = 0) -> Segmenter:
    """Train a segmenter on drawn scenes.

    Args:
        num_steps: of training.
        batch_size: scenes a step.
        seed: of scenes and weights.

    Returns:
        The segmenter, ready to be asked.
    """

    def draw_batch(draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        images, objects = zip(*(draw_labeled_scene(draws) for _ in range(batch_size)), strict=True)
        return to_unit(np.stack(images)), torch.from_numpy(np.stack(objects)).float()[:, None]

    return _train(
        Segmenter,
        draw_batch,
        F.binary_cross_entropy_with_logits,
        learning_rate=3e-3,
        num_steps=num_steps,
        seed=seed,
    )


def draw_labeled_scene(draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one to five objects: an image ``uint8[H, W, 3]`` and where any of them is, ``bool[H, W]``."""
    size_hw = (_SCENE_PX, _SCENE_PX)
    chosen = draws.integers(len(SPECIES), size=draws.integers(1, 6))
    placements = [draw_placement(SPECIES[index], size_hw, _RADIUS_RANGE_PX, draws) for index in chosen]
    background = list(BACKGROUNDS)[draws.integers(len(BACKGROUNDS))]
    scene = draw_scene(placements, background, size_hw, draws)
    return scene.image, np.any(scene.masks, axis=0)


def _block(before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1),
        nn.GroupNorm(8, after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(8, after),
        nn.ReLU(),
    )


def _train(
    network: Callable[[], Network],
    draw_batch: Callable[[np.random.Generator], tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    learning_rate: float,
    num_steps: int,
    seed: int,
) -> Network:
    """Train on drawn images; light noise and blur keep it from asking for sharper ones than are generated."""
    torch.manual_seed(seed)
    draws = np.random.default_rng(seed)
    judge = network()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    for _ in tqdm(range(num_steps), desc=type(judge).__name__.lower(), mininterval=10):
        images, wanted = draw_batch(draws)
        if draws.random() < 0.5:
            images = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        images = images + 0.1 * draws.random() * torch.randn_like(images)
        loss = loss_of(judge(images), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()
