"""Synthetic instances pasted onto real images, as large as real ones of their class (X-Paste)."""

from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field, validate_call
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from mflight.data.copy_paste import Ratio
from mflight.data.lvis import LVISAnnotations
from mflight.data.paste import Patch, cut_patch, paste_patch
from mflight.data.target import Target

Positive = Annotated[float, Field(gt=0.0)]


class ClassScales:
    """How large the instances of each class are: mean and spread of ``sqrt(area / image area)``.

    A class with a single instance has the mean spread of the others, relative to its scale; a class without
    one has the mean of all instances.

    Args:
        labels: int[A] in ``1..C`` of all instances.
        scales: float[A], ``sqrt(area / (H W))`` of each.
        num_classes: ``C``.

    Example:
        >>> scales = ClassScales(np.array([1, 1]), np.array([0.1, 0.3]), num_classes=1)
        >>> round(float(scales.mean[1]), 3), round(float(scales.spread[1]), 3)
        (0.2, 0.1)
    """

    def __init__(self, labels: np.ndarray, scales: np.ndarray, num_classes: int) -> None:
        count, total, squares = (
            np.bincount(labels, weights, num_classes + 1) for weights in (None, scales, scales**2)
        )
        general = float(scales.mean()) if len(scales) else 0.25
        self.mean = np.where(count > 0, total / np.maximum(count, 1), general)
        spread = np.sqrt(np.maximum(squares / np.maximum(count, 1) - self.mean**2, 0.0))
        is_measured = count >= 2
        relative = (spread / self.mean)[is_measured].mean() if is_measured.any() else 0.0
        self.spread = np.where(is_measured, spread, relative * self.mean)

    @classmethod
    def measure(cls, annotations: LVISAnnotations) -> "ClassScales":
        """Measure the instances of an annotation file."""
        return cls(*annotations.instance_scales(), num_classes=len(annotations.categories))

    def draw(self, label: int) -> float:
        """Draw a scale: normal, within two spreads of the mean, not below a quarter of it, at most 1."""
        mean, spread = float(self.mean[label]), float(self.spread[label])
        deviation = float(torch.randn(()).clamp(-2, 2))
        return min(max(mean + spread * deviation, mean / 4), 1.0)


class InstancePaste:
    """Paste the instances of a synthetic image onto a real one, each at the scale of its class.

    Each is cut out along its mask, mirrored at random, resized so that ``sqrt(area / image area)`` is a scale
    drawn for its class, and put where it lies wholly inside. Later ones cover earlier ones. The scale refers
    to the image as it comes, after its own augmentation. Randomness comes from torch's global random state,
    which the loader sets for each slot from seed, rank and step.

    Args:
        scales: of the classes.
        copies: least and largest number of pastes of each instance.
        max_enlargement: largest factor of an instance's sides; above 1 it gets blurred.
        flip_probability: share of instances that are mirrored.
        min_visible_ratio: an instance, pasted or covered, stays if at least this share of it is left,
        min_area_px: and at least this area, in pixels.
        feather_px: standard deviation of the soft edge, in pixels; 0 is a hard edge.

    Raises:
        ValueError: if ``copies`` falls.

    Source:
        Zhao et al., "X-Paste", arXiv:2212.03863, section 3.4 (scale by class, composition).
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        scales: ClassScales,
        copies: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] = (1, 1),
        max_enlargement: Positive = 2.0,
        flip_probability: Ratio = 0.5,
        min_visible_ratio: Ratio = 0.1,
        min_area_px: Annotated[int, Field(ge=1)] = 32,
        feather_px: Annotated[float, Field(ge=0.0)] = 1.0,
    ) -> None:
        if copies[0] > copies[1]:
            raise ValueError(f"copies must rise, got {copies}")
        self._scales, self._copies, self._max_enlargement = scales, copies, max_enlargement
        self._flip_probability, self._feather_px = flip_probability, feather_px
        self._rules = {
            "min_visible_ratio": min_visible_ratio,
            "min_area_px": min_area_px,
            "feather_px": feather_px,
        }

    def __call__(
        self, real: tuple[Tensor, Target], synthetic: tuple[Tensor, Target]
    ) -> tuple[Tensor, Target]:
        """Paste.

        Args:
            real: float32[3, H, W] in [0, 1] and its target.
            synthetic: uint8[3, H', W'] and its target.

        Returns:
            The real image with the instances; ``is_synthetic`` is set and ``sample_id`` tells whose they are.
        """
        (image, target), (source, source_target) = real, synthetic
        source = VF.to_dtype(source, torch.float32, scale=True)
        for mask, label in zip(source_target["masks"], source_target["labels"], strict=True):
            patch = cut_patch(source, mask, label, margin_px=round(2 * self._feather_px))
            for _ in range(int(torch.randint(self._copies[0], self._copies[1] + 1, ()))):
                image, target = self._paste(image, target, patch)
        mark = {"is_synthetic": True, "sample_id": source_target["sample_id"]}
        return image, Target(**{**target, **mark})

    def _paste(self, image: Tensor, target: Target, patch: Patch) -> tuple[Tensor, Target]:
        height, width = image.shape[1:]
        scale = self._scales.draw(int(patch.labels[0]))
        if float(torch.rand(())) < self._flip_probability:
            patch = patch.mirrored()
        sides = patch.image.shape[1:]
        # (factor ** 2) * area = (scale ** 2) * height * width, unless that is too large
        factor = scale * (height * width / float(patch.masks.sum())) ** 0.5
        factor = min(factor, self._max_enlargement, height / sides[0], width / sides[1])
        new_hw = tuple(max(1, round(side * factor)) for side in sides)
        patch = patch.resized(new_hw)
        corner_xy = (_draw(width - new_hw[1]), _draw(height - new_hw[0]))
        return paste_patch(image, target, patch, corner_xy, **self._rules)


def _draw(limit: int) -> int:
    return int(torch.randint(max(limit, 0) + 1, ()))
