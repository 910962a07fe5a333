"""The annotated images of a run: those trained on and those scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, validate_call
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mflight.data.categories import Categories
from mflight.data.copy_paste import CopyPasteDataset, SimpleCopyPaste
from mflight.data.dataset_check import check_dataset
from mflight.data.files import DATASET_KEYS
from mflight.data.left_out import MAX_SHARE
from mflight.data.lvis import LVISDataset, read_categories
from mflight.data.samplers import EpochSampler, build_sampler
from mflight.data.target import Target
from mflight.data.transforms import EvalTransform, TrainTransform


class RealImages:
    """The images trained on and those scored: checks both once, and opens each where it is needed.

    Args:
        train_annotations: LVIS v1 or COCO JSON of the images trained on.
        train_images: folder of these images.
        val_annotations: JSON of the images scored.
        val_images: folder of these images.
        train_transform: augments the images trained on.
        copy_paste: pastes instances of images trained on onto others; ``None`` leaves them.
        sampling: which images come how often, see ``mflight.data.samplers``.
        repeat_threshold: images of classes in a smaller share of the images are repeated; 0 repeats none.
        cache_dir: folder of the annotations' flat arrays.
        prepare: makes the dataset where it is not there yet.
        num_classes: how many the annotations must list; ``None``: any number.
        max_left_out: share of the instances from which on leaving them out is refused; above 1 never.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        train_annotations: Path,
        train_images: Path,
        val_annotations: Path,
        val_images: Path,
        train_transform: TrainTransform,
        copy_paste: SimpleCopyPaste | None = None,
        sampling: Literal["repeat_factor", "class_aware"] = "repeat_factor",
        repeat_threshold: Annotated[float, Field(ge=0.0)] = 0.001,
        cache_dir: Path | None = None,
        prepare: Callable[[], Any] | None = None,
        num_classes: Annotated[int, Field(ge=1)] | None = None,
        max_left_out: Annotated[float, Field(gt=0.0)] = MAX_SHARE,
    ) -> None:
        self.train_annotations, self.train_images = train_annotations, train_images
        self.val_annotations, self.val_images = val_annotations, val_images
        self.train_transform, self._copy_paste = train_transform, copy_paste
        self._sampling = {"sampling": sampling, "repeat_threshold": repeat_threshold}
        self._cache_dir, self._prepare = cache_dir, prepare
        self._rules = {"num_classes": num_classes, "max_left_out": max_left_out, "cache_dir": cache_dir}
        self._is_checked = False
        self._train: LVISDataset | None = None
        self._val: LVISDataset | None = None

    @property
    def categories(self) -> Categories:
        """The classes: of the training annotations, whose frequencies count, once these are open."""
        return (self._train or self.val()).categories

    @property
    def train_categories(self) -> Categories:
        """The classes of the training annotations, with their counts there."""
        return read_categories(self.train_annotations, self._cache_dir)

    def check_unless_made(self) -> None:
        """Raise at once if the dataset is not there or no use, and nothing will make it."""
        if self._prepare is None:
            self.check()

    def prepare(self) -> None:
        """Make the dataset where it can be made, else check it."""
        self.check_unless_made()
        if self._prepare is not None:
            self._prepare()

    def check(self) -> None:
        """Raise unless a detector can be trained on one split and scored on the other."""
        if not self._is_checked:
            check_dataset(**{key: getattr(self, key) for key in DATASET_KEYS}, **self._rules)
            self._is_checked = True

    def train(self) -> LVISDataset:
        """Open the images trained on; one that is damaged gives way to another."""
        if self._train is None:
            self._train = self._open("train", self.train_transform, replaces_damaged=True)
        return self._train

    def augmented(self) -> Dataset:
        """Return the images trained on, with instances pasted onto them where that is wanted."""
        return self.train() if self._copy_paste is None else CopyPasteDataset(self.train(), self._copy_paste)

    def sampler(self, **place: Any) -> EpochSampler:
        """Return the order of the images trained on; ``place`` as ``build_sampler`` takes it."""
        annotations = self.train().annotations
        image_categories = [annotations.image_category_ids(index) for index in range(len(self.train()))]
        return build_sampler(image_categories, **self._sampling, **place)

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
            annotation_file=getattr(self, f"{split}_annotations"),
            image_root=getattr(self, f"{split}_images"),
            cache_dir=self._cache_dir,
            transform=transform,
            replaces_damaged=replaces_damaged,
        )


def _to_lists(samples: list[tuple[Tensor, Target] | None]) -> tuple[list[Tensor], list[Target]]:
    readable = [sample for sample in samples if sample is not None]
    return [image for image, _ in readable], [target for _, target in readable]
