"""Simple Copy-Paste: some instances of one real image, pasted onto another."""

from typing import Annotated, Any

import torch
from pydantic import Field, validate_call
from torch import Tensor
from torch.utils.data import Dataset

from mflight.data.paste import Patch, paste_patch
from mflight.data.target import Target

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]


class SimpleCopyPaste:
    """Paste a random subset of the instances of an image onto another one, at a random place.

    Both images have been scaled, cropped and mirrored before, each in its own way. Randomness comes from
    torch's global random state, which the loader sets for each slot from seed, rank and step.

    Args:
        probability: share of images that get instances of another one.
        max_instances: how many instances are pasted at most; their number is uniform from 0 to this and to
            those that there are.
        min_visible_ratio: an instance, pasted or covered, stays if at least this share of it is left,
        min_area_px: and at least this area, in pixels.
        feather_px: standard deviation of the soft edge, in pixels; 0 is a hard edge, as good by the paper.

    Source:
        Ghiasi et al., "Simple Copy-Paste", arXiv:2012.07177.
    """

    @validate_call
    def __init__(
        self,
        *,
        probability: Ratio = 0.5,
        max_instances: Annotated[int, Field(ge=1)] = 100,
        min_visible_ratio: Ratio = 0.1,
        min_area_px: Annotated[int, Field(ge=1)] = 32,
        feather_px: Annotated[float, Field(ge=0.0)] = 0.0,
    ) -> None:
        self.probability, self.max_instances = probability, max_instances
        self._rules = {
            "min_visible_ratio": min_visible_ratio,
            "min_area_px": min_area_px,
            "feather_px": feather_px,
        }

    def __call__(
        self, image: Tensor, target: Target, other_image: Tensor, other_target: Target
    ) -> tuple[Tensor, Target]:
        """Paste instances of the second image onto the first; images are float32[3, H, W] in [0, 1]."""
        count = len(other_target["labels"])
        number = int(torch.randint(min(count, self.max_instances) + 1, ()))
        chosen = torch.randperm(count)[:number]
        sides = zip(image.shape[:0:-1], other_image.shape[:0:-1], strict=True)  # width, then height
        corner_xy = tuple(_draw_between(0, side - other) for side, other in sides)
        if not number:
            return image, target
        patch = Patch(other_image, other_target["masks"][chosen], other_target["labels"][chosen])
        return paste_patch(image, target, patch, corner_xy, **self._rules)


class CopyPasteDataset(Dataset):
    """Real images, some of them with instances of another one.

    Args:
        real: map-style dataset of ``(image float32[3, H, W], target)``, its augmentation included.
        copy_paste: how instances are pasted.
    """

    def __init__(self, real: Any, copy_paste: SimpleCopyPaste) -> None:
        self.real, self.copy_paste = real, copy_paste

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.real)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return an image; which other one gives instances is drawn uniformly."""
        image, target = self.real[index]
        if float(torch.rand(())) >= self.copy_paste.probability:
            return image, target
        return self.copy_paste(image, target, *self.real[int(torch.randint(len(self.real), ()))])


def _draw_between(first: int, second: int) -> int:
    """Draw a whole number between two, both included, whichever is larger."""
    low, high = min(first, second), max(first, second)
    return low + int(torch.randint(high - low + 1, ()))
