"""A small classifier of drawn objects: it tells what share of the generated ones is the class asked for."""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mflight.minilvis.patch_codes import to_unit
from mflight.minilvis.scene import draw_placement, draw_scene
from mflight.minilvis.species import SPECIES
from mflight.minilvis.textures import BACKGROUNDS

_SIDE_PX = 64


class Judge(nn.Module):
    """Names the class of the one object in a 64 px image; trained on drawn scenes only."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1] * (_SIDE_PX // 16) ** 2, len(SPECIES))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``float32[B, C]`` logits of images ``float32[B, 3, 64, 64]`` in [-1, 1]."""
        return self.classifier(self.features(images).flatten(1))


def draw_examples(count: int, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw single objects: images ``float32[count, 3, 64, 64]`` and class indices ``int64[count]``."""
    images, classes = [], draws.integers(len(SPECIES), size=count)
    for index in classes:
        placement = draw_placement(SPECIES[index], (_SIDE_PX, _SIDE_PX), (15.0, 31.0), draws)
        background = list(BACKGROUNDS)[draws.integers(len(BACKGROUNDS))]
        images.append(draw_scene([placement], background, (_SIDE_PX, _SIDE_PX), draws).image)
    return to_unit(np.stack(images)), torch.from_numpy(classes)


def train_judge(*, num_steps: int = 600, batch_size: int = 32, seed: int = 0) -> tuple[Judge, float]:
    """Train a judge, and return it with its accuracy, in [0, 1], on 480 unseen drawn objects.

    Light noise and blur on its examples keep it from asking for sharper images than the autoencoder gives.
    """
    torch.manual_seed(seed)
    draws = np.random.default_rng(seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    for _ in tqdm(range(num_steps), desc="judge", mininterval=10):
        images, classes = draw_examples(batch_size, draws)
        if draws.random() < 0.5:
            images = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        images = images + 0.1 * draws.random() * torch.randn_like(images)
        loss = F.cross_entropy(judge(images), classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    judge.eval()
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
