"""Real LVIS-format images combined with a dataset of synthetic ones, as a LightningDataModule."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import lightning as L
from pydantic import ConfigDict, Field, validate_call
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mflight.data.categories import Categories
from mflight.data.downscale import RandomDownscale
from mflight.data.instance_paste import ClassScales, InstancePaste
from mflight.data.mixing import MixedBatches
from mflight.data.share import SyntheticShare
from mflight.data.slots import SlotCounts
from mflight.synthesis.mosaic_dataset import MosaicDataset
from mflight.training.rank_batches import RankBatches, rank_and_world_size
from mflight.training.real_images import RealImages
from mflight.training.settings import check_synthesis


class MixedDataModule(L.LightningDataModule):
    """Combines real LVIS images with a dataset that generates MosaicFusion images.

    A training batch is ``(images, targets)``: lists of float32[3, H, W] in [0, 1] and of torchvision targets
    (``mflight.data.target``). It works under any Trainer; the loader shards itself over the ranks. A
    share of synthetic images without a dataset of them is a ValueError, and so are ``downscale`` and
    ``paste`` that would both set the scale of synthetic instances.

    Args:
        real: the images trained on and those scored.
        synthetic: the images that are drawn; ``None``: real images only.
        share: images a step over all ranks, and how many of them are synthetic.
        control: real images fill the synthetic slots: the control of as many images.
        repeat_factors: what ``repeat_threshold`` of the real images is a share of: the ``real`` images, or
            real and synthetic images together (``mixed``).
        downscale: makes synthetic images smaller, after the real images' transform; ``None`` leaves them.
        paste: given ``scales``, builds what pastes synthetic instances onto real images, which then fill the
            synthetic slots; ``None``: synthetic images fill them.
        wait: wait for a sample where none is ready.
        epoch_steps: steps between two validations.
        val_batch_size: images a step of validation, of each rank.
        num_workers: processes that read images for each rank; 0 reads in the trainer's own.
        seed: of sampling and augmentation.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        real: RealImages,
        synthetic: MosaicDataset | None = None,
        share: SyntheticShare,
        control: bool = False,
        repeat_factors: Literal["real", "mixed"] = "real",
        downscale: RandomDownscale | None = None,
        paste: Callable[..., InstancePaste] | None = None,
        wait: bool = False,
        epoch_steps: Annotated[int, Field(ge=1)] = 5000,
        val_batch_size: Annotated[int, Field(ge=1)] = 1,
        num_workers: Annotated[int, Field(ge=0)] = 4,
        seed: int = 0,
    ):
        super().__init__()
        check_synthesis(share.synthetic_ratio, synthetic is not None or control, downscale, paste)
        self.real, self.synthetic = real, synthetic
        self._share, self._control, self._repeat_factors = share, control, repeat_factors
        self._downscale, self._build_paste, self._wait = downscale, paste, wait
        self._val_loading = {"batch_size": val_batch_size, "num_workers": num_workers, "seed": seed}
        self._epoch_steps, self._num_workers, self._seed = epoch_steps, num_workers, seed
        self._batches: MixedBatches | None = None

    @property
    def categories(self) -> Categories:
        """The classes: of the training annotations, whose frequencies count, once these are open."""
        return self.real.categories

    @property
    def train_categories(self) -> Categories:
        """The classes of the training annotations, with their counts there."""
        return self.real.train_categories

    @property
    def pastes_instances(self) -> bool:
        """Whether generated instances come on real images, not on images of their own."""
        return self._build_paste is not None

    @property
    def counts(self) -> SlotCounts:
        """What has filled the slots of the batches trained on so far."""
        return self._batches.counts if self._batches else SlotCounts()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the dataset: the names of its classes, see ``checkpoint_io``."""
        return {"category_names": self.categories.names}

    def prepare_data(self) -> None:
        """Make the real images where they can be made."""
        self.real.prepare()

    def setup(self, stage: str) -> None:
        """Open the data; the synthetic images begin to be drawn before training does."""
        if stage != "fit":
            return self.real.check() if self.real.train_annotations.is_file() else None
        if self._batches is None:
            self._batches = self._mix(*rank_and_world_size())
        if self.synthetic is not None:
            self.synthetic.start()

    def train_dataloader(self) -> RankBatches:
        """Return the batches of this rank; a checkpoint keeps the place of each rank in them."""
        return RankBatches(self._batches)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images, in order."""
        return self.real.val_loader(**self._val_loading)

    def teardown(self, stage: str) -> None:
        """Let no more synthetic images be drawn."""
        if stage == "fit" and self.synthetic is not None:
            self.synthetic.stop()

    def on_exception(self, exception: BaseException) -> None:
        """Let no more synthetic images be drawn when training ends by an error."""
        self.teardown("fit")

    def _mix(self, rank: int, world_size: int) -> MixedBatches:
        share = self._share.over(num_steps=self._num_steps(), num_ranks=world_size)
        self.real.check()
        scales = {"scales": ClassScales.measure(self.real.train().annotations)} if self._build_paste else {}
        stream = self.synthetic and self.synthetic.open(rank=rank, world_size=world_size)
        return MixedBatches(
            real=self.real.augmented(),
            sampler=self.real.sampler(
                **self._synthetic_part(), seed=self._seed, rank=rank, num_ranks=world_size
            ),
            share=share,
            synthetic=stream,
            control=self._control,
            epoch_steps=self._steps_an_epoch(),
            transforms=self._synthetic_transform(),
            paste=self._build_paste and self._build_paste(**scales),
            wait=self._wait,
            while_waiting=self._may_wait,
            num_workers=self._num_workers,
            rank=rank,
            seed=self._seed,
        )

    def _synthetic_part(self) -> dict[str, Any]:
        """Return what repeat factors of real and synthetic images together ask for."""
        if self._repeat_factors == "real" or self.synthetic is None:
            return {}
        frequencies = self.synthetic.category_frequencies()
        return {"synthetic_frequencies": frequencies, "synthetic_ratio": self._share.synthetic_ratio}

    def _synthetic_transform(self) -> Callable:
        if self._downscale is None:
            return self.real.train_transform
        return v2.Compose([self.real.train_transform, self._downscale])

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
        if self.synthetic is None or self.synthetic.generator is None:
            return True  # somebody else may fill the pool
        return self.synthetic.wait_for_more()
