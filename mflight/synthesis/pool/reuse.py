"""Which sample comes next under a cap of uses. No torch."""

import hashlib
import heapq
from collections.abc import Container, Iterable, Mapping

from mflight.synthesis.pool.reader import SampleRef


class ReuseQueue:
    """Hands out samples: fresh ones in order of their requests, then the least used one, each under the cap.

    Which of the least used ones comes first is drawn by the seed. What it holds grows with the samples that
    are in it, not with those that were.

    Args:
        max_reuse: largest number of uses of one sample, the first one included.
        seed: of the order.
    """

    def __init__(self, *, max_reuse: int, seed: int):
        self._max_reuse, self._seed = max_reuse, seed
        self._refs: dict[str, SampleRef] = {}
        self._uses: dict[str, int] = {}
        self._heap: list[tuple[int, int, str]] = []  # (uses, place among equals, sample_id), old ones left in

    def __len__(self) -> int:
        """Return how many samples it holds, used up or not."""
        return len(self._refs)

    @property
    def uses(self) -> Mapping[str, int]:
        """Uses by ``sample_id``, of those used at least once."""
        return self._uses

    @property
    def num_used(self) -> int:
        """How many of the samples that it holds have been used at least once."""
        return len(self._uses.keys() & self._refs.keys())

    def add(self, ref: SampleRef) -> None:
        """Take a sample in, or learn its new place."""
        self._refs[ref.sample_id] = ref
        self._push(ref.sample_id)

    def take(self) -> SampleRef | None:
        """Return the next sample and count the use, or None when there is none under the cap."""
        while self._heap:
            uses, _, sample_id = heapq.heappop(self._heap)
            if sample_id in self._refs and uses == self._uses.get(sample_id, 0):
                self._uses[sample_id] = uses + 1
                self._push(sample_id)
                return self._refs[sample_id]
        return None

    def release(self, sample_id: str) -> None:
        """Take one use back."""
        uses = self._uses.pop(sample_id, 0) - 1
        if uses > 0:
            self._uses[sample_id] = uses
        self._push(sample_id)

    def discard(self, sample_id: str) -> None:
        """Hand a sample out no more, unless it comes from a new place; its uses are kept."""
        self._refs.pop(sample_id, None)

    def forget(self, sample_ids: Iterable[str]) -> None:
        """Let samples go, with their uses."""
        for sample_id in sample_ids:
            self._refs.pop(sample_id, None)
            self._uses.pop(sample_id, None)
        if len(self._heap) > 2 * len(self._refs) + 100:
            self._push_all()

    def load_uses(self, uses: Mapping[str, int]) -> None:
        """Replace all uses; those of samples that are not here wait for them."""
        self._uses = dict(uses)
        self._push_all()

    def forget_uses(self, sample_ids: Container[str]) -> None:
        """Let the uses of samples go that will not come any more."""
        self._uses = {name: count for name, count in self._uses.items() if name not in sample_ids}

    def _push_all(self) -> None:
        self._heap = []
        for sample_id in self._refs:
            self._push(sample_id)

    def _push(self, sample_id: str) -> None:
        uses = self._uses.get(sample_id, 0)
        if sample_id in self._refs and uses < self._max_reuse:
            place = hash_of(f"{self._seed}/{uses}/{sample_id}") if uses else self._refs[sample_id].index
            heapq.heappush(self._heap, (uses, place, sample_id))


def hash_of(text: str) -> int:
    """Return a number below 2^56 that depends on the text alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
