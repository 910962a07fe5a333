"""Real LVIS-format images mixed with the synthetic ones of a pool, as a LightningDataModule."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
from pydantic import ConfigDict, Field, validate_call
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mflight.data.categories import Categories
from mflight.data.copy_paste import CopyPasteDataset, SimpleCopyPaste
from mflight.data.downscale import RandomDownscale
from mflight.data.files import DATASET_KEYS
from mflight.data.instance_paste import ClassScales, InstancePaste
from mflight.data.left_out import MAX_SHARE
from mflight.data.lvis import read_categories
from mflight.data.mixing import MixedBatches
from mflight.data.samplers import build_sampler
from mflight.data.share import SyntheticShare
from mflight.data.slots import SlotCounts
from mflight.data.transforms import TrainTransform
from mflight.synthesis.generator_settings import GeneratorSettings
from mflight.synthesis.service import ServiceReport
from mflight.synthesis.stream import PoolStream
from mflight.training.generators import Generators, Sharing
from mflight.training.rank_batches import RankBatches, rank_and_world_size
from mflight.training.real_images import RealImages
from mflight.training.settings import check_synthesis


class MixedDataModule(L.LightningDataModule):
    """Feeds a detector with real and synthetic images, and keeps the generators alive meanwhile.

    A training batch is ``(images, targets)``: lists of float32[3, H, W] in [0, 1] and of torchvision targets
    (``mflight.data.target``). It works under any Trainer; the loader shards itself over the ranks. A
    share of synthetic images without a ``stream`` is a ValueError, and so are ``downscale`` and ``paste``
    that would both set the scale of synthetic instances.

    Args:
        train_annotations: LVIS v1 or COCO JSON of the images trained on.
        train_images: folder of these images.
        val_annotations: JSON of the images scored.
        val_images: folder of these images.
        train_transform: augments real and synthetic images.
        share: images a step over all ranks, and how many of them are synthetic.
        epoch_steps: steps between two validations.
        val_batch_size: images a step of validation, of each rank.
        num_workers: processes that read images for each rank; 0 reads in the trainer's own.
        sampling: which images come how often, see ``mflight.data.samplers``.
        repeat_threshold: images of classes in a smaller share of the images are repeated; 0 repeats none.
        repeat_factors: that share is one of the ``real`` images, or of real and synthetic images together
            (``mixed``): those that the pool holds, or where a service draws those that it plans.
        cache_dir: folder of the annotations' flat arrays.
        prepare: makes the dataset where it is not there yet.
        control: real images fill the synthetic slots: the control of as many images.
        stream: opens the pool, given ``categories``, ``rank`` and ``world_size``; ``None``: real images only.
        service: settings of the generators; ``None`` draws nothing.
        downscale: makes synthetic images smaller, after ``train_transform``; ``None`` leaves them.
        copy_paste: pastes instances of real images onto others; ``None`` leaves them.
        paste: given ``scales``, builds what pastes synthetic instances onto real images, which then fill the
            synthetic slots; ``None``: synthetic images fill them.
        wait: wait for a sample where none is ready.
        service_poll_s: time between two looks at the generators, in seconds.
        num_classes: how many the annotations must list; ``None``: any number.
        max_left_out: share of the instances from which on leaving them out is refused; above 1 never.
        sharing: how training and generators share one device: the generators fill the pool first, or both
            take turns; ``None`` if each side has its own.
        turn_steps: training steps between two turns of the generators.
        seed: of sampling and augmentation.
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
        share: SyntheticShare,
        epoch_steps: Annotated[int, Field(ge=1)] = 5000,
        val_batch_size: Annotated[int, Field(ge=1)] = 1,
        num_workers: Annotated[int, Field(ge=0)] = 4,
        sampling: Literal["repeat_factor", "class_aware"] = "repeat_factor",
        repeat_threshold: Annotated[float, Field(ge=0.0)] = 0.001,
        repeat_factors: Literal["real", "mixed"] = "real",
        cache_dir: Path | None = None,
        prepare: Callable[[], Any] | None = None,
        control: bool = False,
        stream: Callable[..., PoolStream] | None = None,
        service: GeneratorSettings | None = None,
        downscale: RandomDownscale | None = None,
        copy_paste: SimpleCopyPaste | None = None,
        paste: Callable[..., InstancePaste] | None = None,
        wait: bool = False,
        service_poll_s: Annotated[float, Field(gt=0.0)] = 1.0,
        num_classes: Annotated[int, Field(ge=1)] | None = None,
        max_left_out: Annotated[float, Field(gt=0.0)] = MAX_SHARE,
        sharing: Sharing | None = None,
        turn_steps: Annotated[int, Field(ge=1)] = 16,
        seed: int = 0,
    ):
        super().__init__()
        check_synthesis(share.synthetic_ratio, stream or control, downscale, paste)
        self.train_annotations, self.train_images = train_annotations, train_images
        self.val_annotations, self.val_images = val_annotations, val_images
        self._train_transform, self._cache_dir, self._prepare = train_transform, cache_dir, prepare
        files = {key: getattr(self, key) for key in DATASET_KEYS}
        rules = {"num_classes": num_classes, "max_left_out": max_left_out, "cache_dir": cache_dir}
        self._real = RealImages(files=files, train_transform=train_transform, **rules)
        self._val_loading = {"batch_size": val_batch_size, "num_workers": num_workers, "seed": seed}
        self._epoch_steps, self._num_workers, self._repeat_factors = epoch_steps, num_workers, repeat_factors
        self._sampling = {"sampling": sampling, "repeat_threshold": repeat_threshold}
        self._share, self._control, self._wait, self._sharing = share, control, wait, sharing
        self._build_stream, self._service, self._service_poll_s = stream, service, service_poll_s
        self._downscale, self._copy_paste, self._build_paste, self._seed = downscale, copy_paste, paste, seed
        self.stream: PoolStream | None = None
        self._turn_steps, self._num_taken, self._train_categories = turn_steps, 0, None
        self._batches: MixedBatches | None = None
        self._generators: Generators | None = None

    @property
    def categories(self) -> Categories:
        """The classes: of the training annotations, whose frequencies count, once these are open."""
        return self._train_categories or self._real.val().categories

    @property
    def train_categories(self) -> Categories:
        """The classes of the training annotations, with their counts there."""
        return read_categories(self.train_annotations, self._cache_dir)

    @property
    def pastes_instances(self) -> bool:
        """Whether generated instances come on real images, not on images of their own."""
        return self._build_paste is not None

    @property
    def counts(self) -> SlotCounts:
        """What has filled the slots of the batches trained on so far."""
        return self._batches.counts if self._batches else SlotCounts()

    @property
    def report(self) -> ServiceReport | None:
        """Where the generators stood at the last look; ``None`` where none run here."""
        return self._generators.report if self._generators else None

    @property
    def all_messages(self) -> list[str]:
        """What has happened to the generators since the run began."""
        return self._generators.messages if self._generators else []

    @property
    def sharing_figures(self) -> dict[str, float]:
        """What it cost the training to share one device with the generators; empty where each has its own."""
        if self._generators is None or self._sharing is None:
            return {}
        return {"synthesis/fill_s": self._generators.fill_s, "synthesis/turns_s": self._generators.turns_s}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the dataset: the names of its classes, see ``checkpoint_io``."""
        return {"category_names": self.categories.names}

    def take_messages(self) -> list[str]:
        """Return what has happened to the generators since the last call."""
        messages = self.all_messages[self._num_taken :]
        self._num_taken = len(self.all_messages)
        return messages

    def check_files(self) -> None:
        """Raise at once if the dataset is not there or no use."""
        if self._prepare is None:
            self._real.check()

    def prepare_data(self) -> None:
        """Make the dataset where it can be made."""
        self.check_files()
        if self._prepare is not None:
            self._prepare()

    def setup(self, stage: str) -> None:
        """Open the data, and start the generators before training begins."""
        if stage != "fit":
            return self._real.check() if self.train_annotations.is_file() else None
        rank, world_size = rank_and_world_size()
        if self._batches is None:
            self._batches = self._mix(rank, world_size)
        if self._service is not None and self._generators is None:
            self._generators = Generators(
                settings=self._service,
                pool_dir=self.stream.folder if self.stream else None,
                rank=rank,
                poll_s=self._service_poll_s,
                sharing=self._sharing,
                turn_steps=self._turn_steps,
            )
        if self._generators is not None:
            self._generators.start()

    def train_dataloader(self) -> RankBatches:
        """Return the batches of this rank; a checkpoint keeps the place of each rank in them."""
        return RankBatches(self._batches)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images, in order."""
        return self._real.val_loader(**self._val_loading)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Hand a shared device over between two batches, and leave the batch to the module's own hook."""
        if self._generators is not None and self.trainer.training:
            self._generators.count_batch()
        module = self.trainer.lightning_module
        return module.on_before_batch_transfer(batch, dataloader_idx)

    def teardown(self, stage: str) -> None:
        """Stop the generators."""
        if stage == "fit" and self._generators is not None:
            self._generators.stop()

    def on_exception(self, exception: BaseException) -> None:
        """Stop the generators when training ends by an error."""
        self.teardown("fit")

    def _mix(self, rank: int, world_size: int) -> MixedBatches:
        share = self._share.over(num_steps=self._num_steps(), num_ranks=world_size)
        self._real.check()
        train = self._real.train()
        self._train_categories = train.categories
        image_categories = [train.annotations.image_category_ids(index) for index in range(len(train))]
        place = {"seed": self._seed, "rank": rank, "num_ranks": world_size}
        if self._build_stream is not None:
            self.stream = self._build_stream(categories=train.categories, rank=rank, world_size=world_size)
        return MixedBatches(
            real=train if self._copy_paste is None else CopyPasteDataset(train, self._copy_paste),
            sampler=build_sampler(image_categories, **self._sampling, **self._synthetic_part(), **place),
            share=share,
            synthetic=self.stream,
            control=self._control,
            epoch_steps=self._steps_an_epoch(),
            transforms=self._synthetic_transform(),
            paste=self._build_paste and self._build_paste(scales=ClassScales.measure(train.annotations)),
            wait=self._wait,
            while_waiting=self._may_wait,
            num_workers=self._num_workers,
            rank=rank,
            seed=self._seed,
        )

    def _synthetic_part(self) -> dict[str, Any]:
        """Return what repeat factors of real and synthetic images together ask for."""
        source = self._service or self.stream
        if self._repeat_factors == "real" or source is None:
            return {}
        frequencies = source.category_frequencies()
        return {"synthetic_frequencies": frequencies, "synthetic_ratio": self._share.synthetic_ratio}

    def _synthetic_transform(self) -> Callable:
        if self._downscale is None:
            return self._train_transform
        return v2.Compose([self._train_transform, self._downscale])

    def _steps_an_epoch(self) -> int:
        """Shorten the epoch of a run that has fewer steps, so that it ends with a validation."""
        return min(self._epoch_steps, self._num_steps() or self._epoch_steps)

    def _num_steps(self) -> int | None:
        """Return the steps of the whole training, or ``None`` if nothing bounds them."""
        if self.trainer is None:
            return None
        max_steps, max_epochs = self.trainer.max_steps, self.trainer.max_epochs or -1
        bounds = [max_steps] if max_steps > 0 else []
        bounds += [max_epochs * self._epoch_steps] if max_epochs > 0 else []
        return min(bounds, default=None)

    def _may_wait(self) -> bool:
        """Return whether to go on waiting for a sample."""
        if self.trainer is not None and self.trainer.received_sigterm:
            return False
        if self._generators is None:
            return True
        self._generators.wait_for_sample()
        return self._generators.more_may_come()
