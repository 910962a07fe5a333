"""The trainer's view of the pool: which sample comes next under a cap of uses, and its image and target."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, validate_call
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torchvision.io import ImageReadMode, decode_image

from mflight.data.categories import Categories
from mflight.data.target import Target
from mflight.functional.masks import RLE, mask_areas, rle_decode_box
from mflight.synthesis.pool.acceptance import AcceptanceCounts
from mflight.synthesis.pool.folder import PoolReader, SampleRef
from mflight.synthesis.pool.packing import EncodedSample
from mflight.synthesis.pool.reuse import ReuseQueue, hash_of
from mflight.synthesis.pool.shards import PoolError
from mflight.synthesis.pool.signals import forget_consumption, write_consumption


class PoolStream(IterableDataset):
    """Hands out the samples of a pool: fresh ones before used ones, none more often than the cap.

    Fresh samples come in order of their requests; then the least used one comes, the oldest or one drawn by
    the seed. A sample belongs to one training rank, by a hash of its id, so ranks never share its uses. The
    order depends on the samples and their uses alone: two replays of one pool are equal. Samples that are
    evicted from the pool are forgotten with their uses; no writer draws them again.

    Iterating yields decoded samples until none may be used any more; ``next_ref`` and ``read`` are the two
    halves of it, for a loader that decides in one process and reads in another.

    Args:
        pool_dir: the pool folder; it may appear later.
        categories: give the labels.
        max_reuse: largest number of uses of one sample, the first one included.
        order: which of the least used samples comes first once all are used.
        rank: of this training process.
        world_size: number of training processes.
        poll_interval_s: shortest time between two looks into the folder, in seconds.
        seed: of the ``random`` order.
        background_loss: whether the detector learns from the background of synthetic images. Only the classes
            asked for are known in them, so their background may show others; False leaves it out of the loss.
        publish: tell the generators, in the pool folder, how many samples have been used; they pause by it.

    Raises:
        ValueError: if ``rank`` is not below ``world_size``.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        pool_dir: str | Path,
        categories: Categories,
        max_reuse: Annotated[int, Field(ge=1)] = 8,
        order: Literal["random", "oldest"] = "random",
        rank: Annotated[int, Field(ge=0)] = 0,
        world_size: Annotated[int, Field(ge=1)] = 1,
        poll_interval_s: Annotated[float, Field(ge=0.0)] = 1.0,
        seed: int = 0,
        background_loss: bool = True,
        publish: bool = True,
    ):
        if rank >= world_size:
            raise ValueError(f"rank must be below world_size {world_size}, got {rank}")
        self._reader = PoolReader(pool_dir)
        self._queue = ReuseQueue(max_reuse=max_reuse, order=order, seed=seed)
        self._categories, self._background_loss = categories, background_loss
        self._rank, self._world_size = rank, world_size
        self._poll_interval_s, self._publishes = poll_interval_s, publish
        self._polled_at = -float("inf")
        self._published: Counter[str] | None = None
        self._has_loaded = False
        self.num_missed = 0
        if publish and rank == 0:
            forget_consumption(self._reader.folder)

    @property
    def num_samples(self) -> int:
        """How many samples of this rank the pool holds, as far as it has been looked at."""
        return len(self._queue)

    @property
    def num_used(self) -> int:
        """How many samples in the pool this rank has used at least once."""
        return self._queue.used_of_shard.total()

    @property
    def num_evicted(self) -> int:
        """How many samples of all ranks have made room for others."""
        return len(self._reader.evicted_ids)

    @property
    def num_uses_in_all(self) -> int:
        """How often the samples of this rank have been handed out, all together."""
        return sum(self._queue.uses.values())

    @property
    def folder(self) -> Path:
        """The pool folder."""
        return self._reader.folder

    @property
    def categories(self) -> Categories:
        """The classes that give the labels."""
        return self._categories

    def category_frequencies(self) -> dict[int, float]:
        """Return the share of the pool's images that show a class, by category_id, as it stands now.

        A class that an image shows twice counts twice, up to a share of 1.
        """
        self._poll()
        kept = self._reader.acceptance
        return {category_id: min(1.0, n / kept.num_images) for category_id, n in kept.num_kept.items()}

    @property
    def acceptance(self) -> AcceptanceCounts:
        """Regions drawn and kept by class, over all ranks, as far as the pool has been looked at."""
        return self._reader.acceptance

    @property
    def set_aside(self) -> dict[str, str]:
        """What the reader found torn or foreign, and why."""
        return self._reader.set_aside

    def next_ref(self, *, look_now: bool = False) -> SampleRef | None:
        """Return the sample to use next and count the use, or None when there is none under the cap."""
        if look_now:
            self._polled_at = -float("inf")
        self._poll()
        return self._queue.take()

    def is_used_up(self) -> bool:
        """Look into the pool now, and return whether it holds no sample that may still be used."""
        ref = self.next_ref(look_now=True)
        self.release([] if ref is None else [ref])
        return ref is None

    def num_uses(self, ref: SampleRef) -> int:
        """Return how often a sample has been handed out; 1 just after it came fresh."""
        return self._queue.uses.get(ref.sample_id, 0)

    def read(self, ref: SampleRef) -> tuple[Tensor, Target]:
        """Read one sample, from any process.

        Args:
            ref: from ``next_ref``.

        Returns:
            ``uint8[3, H, W]`` and its target. A ``PoolError`` tells of a sample that is torn, or that holds a
            class which the dataset does not have.
        """
        return to_target(self._reader.read_encoded(ref), self._categories, ref.index, self._background_loss)

    def release(self, refs: Iterable[SampleRef]) -> None:
        """Take back uses that were handed out and never reached the training."""
        for ref in refs:
            self._queue.release(ref.sample_id)

    def discard(self, ref: SampleRef) -> None:
        """Never hand out this sample again: it cannot be read. One that was evicted counts as missed."""
        self._queue.discard(ref.sample_id)
        if not (self._reader.folder / ref.shard).exists():
            self.num_missed += 1

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        worker = get_worker_info()
        while (ref := self.next_ref()) is not None:
            if worker is None or hash_of(f"worker/{ref.sample_id}") % worker.num_workers == worker.id:
                try:
                    yield self.read(ref)
                except PoolError:
                    self.discard(ref)

    def state_dict(self, pending: Iterable[SampleRef] = ()) -> dict[str, Any]:
        """Return the uses of each sample, without the ``pending`` ones that have not reached the training."""
        uses = dict(self._queue.uses)
        for ref in pending:
            uses[ref.sample_id] = uses.get(ref.sample_id, 0) - 1
        return {"uses": {sample_id: count for sample_id, count in uses.items() if count > 0}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the uses of a checkpoint; the samples themselves are found in the folder again."""
        self._queue.load_uses(state["uses"])
        self._has_loaded = True

    def _poll(self) -> None:
        now = time.monotonic()
        if now - self._polled_at < self._poll_interval_s:
            return
        self._polled_at = now
        for ref in self._reader.poll():
            if hash_of(ref.sample_id) % self._world_size == self._rank:
                self._queue.add(ref)
        self._queue.forget(self._reader.newly_evicted)
        if self._has_loaded:  # a checkpoint may know samples that were evicted since
            self._queue.forget_uses(self._reader.evicted_ids)
            self._has_loaded = False
        if self._publishes and self._reader.folder.is_dir():
            with contextlib.suppress(OSError):  # a full disk stops the generators, not the training
                self._publish()

    def _publish(self) -> None:
        used = self._queue.used_of_shard
        if used != self._published:
            place = {"rank": self._rank, "world_size": self._world_size}
            write_consumption(self._reader.folder, **place, used_samples=used)
            self._published = used


def to_target(
    sample: EncodedSample, categories: Categories, index: int, background_loss: bool = True
) -> tuple[Tensor, Target]:
    """Turn a sample of the pool into what the detector trains on.

    Args:
        sample: image file, annotations with ``category_id`` and RLE, regions.
        categories: give the labels.
        index: number of the sample's request; ``-1 - index`` becomes the ``image_id``, as of no real image.
        background_loss: whether the background is learnt from; if not, the whole image is to be ignored
            wherever it matches no instance.

    Returns:
        ``uint8[3, H, W]`` as RGB and the target; boxes and areas are those of the masks. The classes that the
        request did not name are unknown, not absent, so ``negative_labels`` is empty. A rejected region of a
        rescued canvas shows an object without a mask: its box is in ``ignore_boxes``, its class in
        ``not_exhaustive_labels``. It is a PoolError if the class of an annotation or of a rejected region is
        none of ``categories``, or if a mask is empty or of another size.
    """
    image = _decode(sample)
    size_hw = tuple(image.shape[1:])
    labels = _labels(sample, sample.annotations, categories)
    masks, boxes = _draw_masks(sample, size_hw)
    rejected = [region for region in sample.regions if region.get("rejected")]
    rejected_labels = torch.tensor(_labels(sample, rejected, categories), dtype=torch.int64)
    ignore_boxes = [region["box"] for region in rejected]
    if not background_loss:
        ignore_boxes = [[0, 0, size_hw[1], size_hw[0]]]
    return image, {
        "boxes": torch.from_numpy(boxes.astype(np.float32)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(masks),
        "image_id": -1 - index,
        "area": torch.from_numpy(mask_areas(masks).astype(np.float32)),
        "iscrowd": torch.zeros(len(masks), dtype=torch.int64),
        "is_synthetic": True,
        "negative_labels": torch.zeros(0, dtype=torch.int64),
        "not_exhaustive_labels": rejected_labels.unique(),
        "ignore_boxes": torch.tensor(ignore_boxes, dtype=torch.float32).reshape(-1, 4),
        "sample_id": sample.sample_id,
    }


def _decode(sample: EncodedSample) -> Tensor:
    """Return the image ``uint8[3, H, W]``, pixel by pixel in memory; Pillow and a copy take longer."""
    try:
        picture = torch.frombuffer(bytearray(sample.picture), dtype=torch.uint8)
        image = decode_image(picture, ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise PoolError(f"sample {sample.sample_id}: its image cannot be decoded ({error})") from error
    if image.dtype != torch.uint8:
        raise PoolError(f"sample {sample.sample_id}: its image must have 8 bits a channel, got {image.dtype}")
    return image


def _draw_masks(sample: EncodedSample, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks ``uint8[N, H, W]`` and their boxes ``int64[N, 4]`` xyxy, in px."""
    rles = [annotation["segmentation"] for annotation in sample.annotations]
    masks = np.zeros((len(rles), *size_hw), dtype=np.uint8)
    boxes = np.zeros((len(rles), 4), dtype=np.int64)
    for number, rle in enumerate(rles):
        try:
            part, (x1, y1, x2, y2) = _draw_mask(rle, size_hw)
        except ValueError as error:
            raise PoolError(f"sample {sample.sample_id}: {error}") from error
        boxes[number] = x1, y1, x2, y2
        masks[number, y1:y2, x1:x2] = part
    return masks, boxes


def _draw_mask(rle: RLE, size_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Draw a mask within its box; one of another size is refused before, however large it says it is."""
    if tuple(rle["size"]) != size_hw:
        raise ValueError(f"a mask must be non-empty {list(size_hw)}, got {list(rle['size'])}")
    part, box = rle_decode_box(rle)
    if not part.size:
        raise ValueError(f"a mask must be non-empty {list(size_hw)}, got {list(rle['size'])}, empty")
    return part, box


def _labels(sample: EncodedSample, entries: list[dict[str, Any]], categories: Categories) -> list[int]:
    """Return the label of each entry with a ``category_id``."""
    try:
        return [categories.label_of(entry["category_id"]) for entry in entries]
    except KeyError as error:
        raise PoolError(f"sample {sample.sample_id}: {error.args[0]}") from error
