"""The slots of a batch: what may fill one, how it is read, how it is counted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

SlotFilling = Literal["real", "fresh", "reused", "fallback"]


@runtime_checkable
class SyntheticSource(Protocol):
    """What ``MixedBatches`` asks of a pool; ``mflight.synthesis.stream.PoolStream`` is one."""

    def next_ref(self, *, look_now: bool = False) -> Any | None:
        """Return what to use next and count the use, or None when there is nothing.

        A source that looks for new ones from time to time only looks again with ``look_now``.
        """

    def num_uses(self, ref: Any) -> int:
        """Return how often it has been handed out, this time included."""

    def read(self, ref: Any) -> tuple[Tensor, Any]:
        """Return image and target; a ValueError or OSError means that it cannot be read."""

    def release(self, refs: Iterable[Any]) -> None:
        """Take back uses that never reached the training."""

    def discard(self, ref: Any) -> None:
        """Never hand this out again."""

    def state_dict(self, pending: Iterable[Any] = ()) -> dict[str, Any]:
        """Return the uses without the pending ones."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Slot:
    """Key of one image: what fills the slot, as the main process decides it and a worker reads it.

    Attributes:
        real_index: index of the real image, of a synthetic slot the one in reserve
            or pasted onto.
        ref: what the synthetic source reads, or None.
        seed: of the random numbers that augment this image.
        filling: what this is, for the counts.
    """

    real_index: int
    ref: Any | None
    seed: int
    filling: SlotFilling


@dataclass
class SlotCounts:
    """What filled the slots of the batches that the training has taken.

    Attributes:
        real: slots that were real by the ratio.
        fresh: synthetic slots with a sample's first use.
        reused: synthetic slots with a later use.
        fallback: synthetic slots that a real image had to fill.
        unreadable: fallbacks because a sample could not be read.
        wait_s: seconds of asking the synthetic source, and of waiting for it where that is wanted.
    """

    real: int = 0
    fresh: int = 0
    reused: int = 0
    fallback: int = 0
    unreadable: int = 0
    wait_s: float = field(default=0.0, compare=False)  # a time: two equal runs differ in it

    def add(self, slots: Iterable[Slot], targets: Iterable[Any]) -> list[Any]:
        """Count one batch.

        Args:
            slots: as they were decided.
            targets: of the images that came; ``is_synthetic`` tells whether a planned sample could be read.

        Returns:
            References that could not be read.
        """
        unreadable = []
        for slot, target in zip(slots, targets, strict=True):
            filling = slot.filling
            if slot.ref is not None and not target.get("is_synthetic", False):
                filling = "fallback"
                self.unreadable += 1
                unreadable.append(slot.ref)
            setattr(self, filling, getattr(self, filling) + 1)
        return unreadable

    @property
    def synthetic_share(self) -> float:
        """Share of synthetic images among those taken, in [0, 1]."""
        taken = self.real + self.fresh + self.reused + self.fallback
        return (self.fresh + self.reused) / max(1, taken)


class SlotDataset(Dataset):
    """Reads what a slot names, with random numbers that belong to the slot and not to the process.

    Args:
        real: map-style dataset of ``(image, target)``, its augmentation included.
        synthetic: reads references; None if no slot holds one.
        transforms: called with image and target of a synthetic sample.
        paste: called with a real and a synthetic sample, the second as it was read, puts the instances of
            the second into the first; ``None`` takes synthetic images as they are.
    """

    def __init__(
        self,
        real: Any,
        synthetic: SyntheticSource | None,
        transforms: Callable | None,
        paste: Callable | None = None,
    ):
        self._real, self._synthetic, self._transforms, self._paste = real, synthetic, transforms, paste

    def __getitem__(self, slot: Slot) -> tuple[Tensor, Any]:
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(slot.seed)  # the CPU's only, where images are augmented
        try:
            return self._read(slot)
        finally:
            torch.set_rng_state(state)

    def _read(self, slot: Slot) -> tuple[Tensor, Any]:
        if slot.ref is None:
            return self._real[slot.real_index]
        try:
            image, target = self._synthetic.read(slot.ref)
        except (ValueError, OSError):
            return self._real[slot.real_index]
        if self._paste:
            return self._paste(self._real[slot.real_index], (image, target))
        return self._transforms(image, target) if self._transforms else (image, target)
