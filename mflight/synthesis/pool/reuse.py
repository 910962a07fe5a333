"""Which sample comes next under a cap of uses. No torch."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import Literal

from mflight.synthesis.pool.folder import SampleRef


class ReuseQueue:
    """Hands out samples: fresh ones in order of their requests, then the least used one, each under the cap.

    What it holds grows with the samples that are in it, not with those that were.

    Args:
        max_reuse: largest number of uses of one sample, the first one included.
        order: which of the least used samples comes first once all are used.
        seed: of the ``random`` order.
    """

    def __init__(self, *, max_reuse: int, order: Literal["random", "oldest"], seed: int):
        self._max_reuse, self._order, self._seed = max_reuse, order, seed
        self._refs: dict[str, SampleRef] = {}
        self._uses: dict[str, int] = {}
        self._unreadable: set[str] = set()
        self._used_of_shard: Counter[str] = Counter()
        self._heap: list[tuple[int, int, str]] = []  # (uses, place among equals, sample_id), old ones left in

    def __len__(self) -> int:
        """Return how many samples it holds, used up or not."""
        return len(self._refs)

    @property
    def uses(self) -> Mapping[str, int]:
        """Uses by ``sample_id``, of those used at least once."""
        return self._uses

    @property
    def used_of_shard(self) -> Counter[str]:
        """How many samples of each shard have been used at least once."""
        return +self._used_of_shard

    def add(self, ref: SampleRef) -> None:
        """Take a sample in, or learn its new place."""
        uses = self._uses.get(ref.sample_id, 0)
        self._set_uses(ref.sample_id, 0)  # of its old place
        self._refs[ref.sample_id] = ref
        self._set_uses(ref.sample_id, uses)
        self._unreadable.discard(ref.sample_id)
        self._push(ref.sample_id)

    def take(self) -> SampleRef | None:
        """Return the next sample and count the use, or None when there is none under the cap."""
        while self._heap:
            uses, _, sample_id = heapq.heappop(self._heap)
            ref = self._refs.get(sample_id)
            if ref and uses == self._uses.get(sample_id, 0) and sample_id not in self._unreadable:
                self._set_uses(sample_id, uses + 1)
                self._push(sample_id)
                return ref
        return None

    def release(self, sample_id: str) -> None:
        """Take one use back."""
        self._set_uses(sample_id, max(0, self._uses.get(sample_id, 0) - 1))
        self._push(sample_id)

    def discard(self, sample_id: str) -> None:
        """Hand a sample out no more, unless it comes from a new place."""
        if sample_id in self._refs:
            self._unreadable.add(sample_id)

    def forget(self, sample_ids: Iterable[str]) -> None:
        """Let samples go, with their uses."""
        for sample_id in sample_ids:
            self._set_uses(sample_id, 0)
            self._refs.pop(sample_id, None)
            self._unreadable.discard(sample_id)
        self._used_of_shard = +self._used_of_shard
        if len(self._heap) > 2 * len(self._refs) + 100:
            self._push_all()

    def load_uses(self, uses: Mapping[str, int]) -> None:
        """Replace all uses; those of samples that are not here wait for them."""
        self._uses = dict(uses)
        self._used_of_shard = Counter(self._refs[name].shard for name in self._uses if name in self._refs)
        self._push_all()

    def forget_uses(self, sample_ids: Container[str]) -> None:
        """Let the uses of samples go that will not come any more."""
        self._uses = {name: count for name, count in self._uses.items() if name not in sample_ids}

    def _set_uses(self, sample_id: str, uses: int) -> None:
        was_used = self._uses.pop(sample_id, 0) > 0
        if uses:
            self._uses[sample_id] = uses
        if sample_id in self._refs:
            self._used_of_shard[self._refs[sample_id].shard] += (uses > 0) - was_used

    def _push_all(self) -> None:
        self._heap = []
        for sample_id in self._refs:
            self._push(sample_id)

    def _push(self, sample_id: str) -> None:
        uses = self._uses.get(sample_id, 0)
        if uses >= self._max_reuse or sample_id not in self._refs:
            return
        is_drawn = uses > 0 and self._order == "random"
        place = hash_of(f"{self._seed}/{uses}/{sample_id}") if is_drawn else self._refs[sample_id].index
        heapq.heappush(self._heap, (uses, place, sample_id))


def hash_of(text: str) -> int:
    """Return a number below 2^56 that depends on the text alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
