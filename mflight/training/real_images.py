"""The annotated images of a run: those trained on and those scored."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mflight.data.dataset_check import check_dataset
from mflight.data.lvis import LVISDataset
from mflight.data.target import Target
from mflight.data.transforms import EvalTransform


class RealImages:
    """Checks both splits once, and opens each where it is needed.

    Args:
        files: a path for each of ``mflight.data.files.DATASET_KEYS``.
        train_transform: augments the images trained on.
        cache_dir: folder of the annotations' flat arrays.
        **rules: ``num_classes`` and ``max_left_out`` of ``check_dataset``.
    """

    def __init__(
        self,
        *,
        files: Mapping[str, Path],
        train_transform: Callable,
        cache_dir: Path | None,
        **rules: Any,
    ) -> None:
        self._files, self._cache_dir, self._rules = files, cache_dir, rules
        self._train_transform = train_transform
        self._is_checked = False
        self._val: LVISDataset | None = None

    def check(self) -> None:
        """Raise unless a detector can be trained on one split and scored on the other."""
        if not self._is_checked:
            check_dataset(**self._files, **self._rules, cache_dir=self._cache_dir)
            self._is_checked = True

    def train(self) -> LVISDataset:
        """Open the images trained on; one that is damaged gives way to another."""
        return self._open("train", self._train_transform, replaces_damaged=True)

    def val(self) -> LVISDataset:
        """Open the images scored, the first time; one that is damaged is left out."""
        if self._val is None:
            self._val = self._open("val", EvalTransform(), replaces_damaged=False)
        return self._val

    def val_loader(self, *, batch_size: int, num_workers: int, seed: int) -> DataLoader:
        """Return the images scored, in order, as lists of images and targets."""
        return DataLoader(
            self.val(),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=_to_lists,
            generator=torch.Generator().manual_seed(seed),  # leaves the global random state alone
        )

    def _open(self, split: str, transform: Callable, replaces_damaged: bool) -> LVISDataset:
        return LVISDataset(
            annotation_file=self._files[f"{split}_annotations"],
            image_root=self._files[f"{split}_images"],
            cache_dir=self._cache_dir,
            transform=transform,
            replaces_damaged=replaces_damaged,
        )


def _to_lists(samples: list[tuple[Tensor, Target] | None]) -> tuple[list[Tensor], list[Target]]:
    readable = [sample for sample in samples if sample is not None]
    return [image for image, _ in readable], [target for _, target in readable]
