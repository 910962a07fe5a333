"""The trainer's view of the pool: which sample comes next under a cap of uses."""

import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, validate_call
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mflight.data.categories import Categories
from mflight.data.target import Target
from mflight.synthesis.pool.index import PoolError, tell_uses
from mflight.synthesis.pool.reader import PoolReader, SampleRef
from mflight.synthesis.pool.reuse import ReuseQueue, hash_of
from mflight.synthesis.pool_target import to_target

logger = logging.getLogger(__name__)


class PoolStream(IterableDataset):
    """Hands out the samples of a pool: fresh ones before used ones, none more often than the cap.

    Fresh samples come in order of their requests; then one of the least used ones comes, drawn by the seed. A
    sample belongs to one training rank, by a hash of its id, so ranks never share its uses. The order depends
    on the samples and their uses alone: two replays of one pool are equal. Samples that are evicted from the
    pool are forgotten with their uses; no writer draws them again.

    Iterating yields decoded samples until none may be used any more; ``next_ref`` and ``read`` are the two
    halves of it, for a loader that decides in one process and reads in another.

    Args:
        pool_dir: the pool folder; it may appear later.
        categories: give the labels.
        max_reuse: largest number of uses of one sample, the first one included.
        rank: of this training process.
        world_size: number of training processes.
        poll_interval_s: shortest time between two looks into the folder, in seconds.
        seed: of the order of used samples.
        background_loss: whether the detector learns from the background of synthetic images. Only the classes
            asked for are known in them, so their background may show others; False leaves it out of the loss.
        publish: tell the generators, in the pool's index, which samples have been used; they pause by it.

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
        self._queue = ReuseQueue(max_reuse=max_reuse, seed=seed)
        self._categories, self._background_loss = categories, background_loss
        self._rank, self._world_size = rank, world_size
        self._poll_interval_s, self._publishes = poll_interval_s, publish
        self._polled_at = -float("inf")
        self._untold: set[str] = set()  # samples whose uses have changed
        self._has_loaded, self._may_warn = False, True
        if publish and rank == 0:
            self._tell_uses(forget_others=True)

    @property
    def num_samples(self) -> int:
        """How many samples of this rank the pool holds, as far as it has been looked at."""
        return len(self._queue)

    @property
    def num_used(self) -> int:
        """How many samples in the pool this rank has used at least once."""
        return self._queue.num_used

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
        kept = self._reader.acceptance()
        return {category_id: min(1.0, n / kept.num_images) for category_id, n in kept.num_kept.items()}

    @property
    def set_aside(self) -> dict[str, str]:
        """What the reader found torn or foreign, and why."""
        return self._reader.set_aside

    def next_ref(self, *, look_now: bool = False) -> SampleRef | None:
        """Return the sample to use next and count the use, or None when there is none under the cap."""
        if look_now:
            self._polled_at = -float("inf")
        self._poll()
        ref = self._queue.take()
        if ref is not None:
            self._untold.add(ref.sample_id)
        return ref

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
            self._untold.add(ref.sample_id)

    def discard(self, ref: SampleRef) -> None:
        """Never hand out this sample again, unless it comes from another place: it cannot be read."""
        self._queue.discard(ref.sample_id)

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
        self._untold.update(self._queue.uses, state["uses"])
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
            self._queue.forget_uses(self._reader.ids("evicted"))
            self._has_loaded = False
        if self._publishes and self._untold:
            self._tell_uses()

    def _tell_uses(self, *, forget_others: bool = False) -> None:
        uses = {sample_id: self._queue.uses.get(sample_id, 0) for sample_id in self._untold}
        try:
            tell_uses(self.folder, uses, forget_others=forget_others)
            self._untold.clear()
        except (OSError, sqlite3.Error) as error:  # a full disk stops only the generators
            if self._may_warn:
                logger.warning(
                    "pool %s: its index does not take what training has used: %s", self.folder, error
                )
            self._may_warn = False
