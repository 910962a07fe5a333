"""Batches of real and synthetic images: how many of each is fixed by the step, and nothing ever waits.

The main process decides what fills each slot, when the loader asks for a batch's keys; reading and
augmenting may happen in worker processes. What counts as used is what the training has taken, not what lies
prefetched.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, validate_call
from torch import Tensor
from torch.utils.data import DataLoader

from mflight.data.share import SyntheticShare
from mflight.data.slots import Slot, SlotCounts, SlotDataset, SyntheticSource

_WAIT_STEP_S = 0.05


class MixedBatches:
    """Iterates over batches ``(images, targets)``, real images first; fit for a Trainer.

    Every synthetic slot is filled with what the source gives; when it gives nothing, or what it gave cannot
    be read, a real image fills the slot and a fallback is counted. One pass is one epoch of ``epoch_steps``
    batches; after ``load_state_dict`` in mid-epoch the first pass holds the rest of that epoch. The state is
    that of the batches taken: what was prefetched and never taken is given back.

    Args:
        real: map-style dataset of ``(image, target)``, its augmentation included.
        sampler: yields indices of ``real``, without end or from the start again; with ``state_dict`` and
            ``load_state_dict`` a resumed run goes on with the same images.
        share: tells how many images of a step are synthetic.
        synthetic: gives synthetic samples; None for real batches only.
        control: real images fill the synthetic slots: the control of an experiment with synthetic ones, of as
            many images.
        epoch_steps: batches per epoch.
        transforms: called with image and target of each synthetic sample.
        paste: puts synthetic instances into real images instead, see ``SlotDataset``.
        wait: wait for a sample where none is ready, for exact replays; otherwise training never waits.
        wait_timeout_s: longest such wait, in seconds; then a TimeoutError ends the training.
        while_waiting: called again and again during such a wait; False tells that nothing more will come.
        num_workers: processes that read and augment; 0 does it in this one.
        rank: of this training process.
        seed: of the augmentation.

    Raises:
        ValueError: if there is a share of synthetic slots but nothing to fill them, or if ``real`` is empty.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        real: Any,
        sampler: Any,
        share: SyntheticShare,
        synthetic: SyntheticSource | None = None,
        control: bool = False,
        epoch_steps: Annotated[int, Field(ge=1)],
        transforms: Callable | None = None,
        paste: Callable | None = None,
        wait: bool = False,
        wait_timeout_s: Annotated[float, Field(gt=0.0)] = 600.0,
        while_waiting: Callable[[], bool] | None = None,
        num_workers: Annotated[int, Field(ge=0)] = 0,
        rank: Annotated[int, Field(ge=0)] = 0,
        seed: int = 0,
    ):
        if share.synthetic_ratio > 0 and synthetic is None and not control:
            raise ValueError("a share of synthetic images needs a source of them, got synthetic=None")
        if len(real) == 0:
            raise ValueError("the real dataset must hold at least one image, got 0")
        self._real, self._sampler, self._synthetic = real, sampler, synthetic
        self._share, self._control = share, control
        self._epoch_steps, self._step = epoch_steps, 0
        self._wait, self._wait_timeout_s, self._while_waiting = wait, wait_timeout_s, while_waiting
        self._rank, self._seed = rank, seed
        self._loader_settings = {
            "dataset": SlotDataset(real, synthetic, transforms, paste),
            "num_workers": num_workers,
            "collate_fn": _to_lists,
        }
        self._counts = SlotCounts()
        self._pending: deque[_Plan] = deque()
        self._indices: Iterator[int] | None = None

    @property
    def counts(self) -> SlotCounts:
        """What has filled the slots of the batches taken so far."""
        return replace(self._counts)

    @property
    def step(self) -> int:
        """Number of the batch that will be taken next."""
        return self._step

    def __len__(self) -> int:
        """Return the batches per epoch."""
        return self._epoch_steps

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[Any]]]:
        """Yield the batches up to the end of the epoch."""
        self._give_back()
        num_steps = self._epoch_steps - self._step % self._epoch_steps
        loader = DataLoader(
            **self._loader_settings,
            batch_sampler=self._plan_batches(self._step, num_steps),
            generator=torch.Generator().manual_seed(self._seed),  # leaves the global random state alone
        )
        for images, targets in loader:
            self._take(targets)
            yield images, targets

    def state_dict(self) -> dict[str, Any]:
        """Return where the training stands: the step, the sampler, the uses, the counts."""
        refs = [slot.ref for plan in self._pending for slot in plan.slots if slot.ref is not None]
        return {
            "step": self._step,
            "sampler": self._pending[0].sampler_state if self._pending else self._sampler_state(),
            "synthetic": self._synthetic.state_dict(refs) if self._synthetic else None,
            "counts": asdict(self._counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; what is prefetched now is forgotten."""
        self._give_back()
        self._step = state["step"]
        self._counts = SlotCounts(**state["counts"])
        self._load_sampler(state["sampler"])
        if self._synthetic and state["synthetic"] is not None:
            self._synthetic.load_state_dict(state["synthetic"])

    def _plan_batches(self, first_step: int, num_steps: int) -> Iterator[list[Slot]]:
        for step in range(first_step, first_step + num_steps):
            plan = _Plan(self._sampler_state())
            self._pending.append(plan)
            num_real, num_synthetic = self._share.counts(step, self._rank)
            for slot in range(num_real + num_synthetic):
                draws = random.Random(f"{self._seed}/{self._rank}/{step}/{slot}")
                plan.slots.append(self._fill(slot >= num_real and not self._control, draws, plan))
            yield plan.slots

    def _fill(self, is_synthetic: bool, draws: random.Random, plan: "_Plan") -> Slot:
        seed = draws.getrandbits(63)
        ref = self._next_ref(plan) if is_synthetic else None
        if ref is None:
            return Slot(self._next_index(), None, seed, "fallback" if is_synthetic else "real")
        is_fresh = self._synthetic.num_uses(ref) == 1
        return Slot(draws.randrange(len(self._real)), ref, seed, "fresh" if is_fresh else "reused")

    def _next_ref(self, plan: "_Plan") -> Any | None:
        started = time.monotonic()
        ref = self._synthetic.next_ref()
        while ref is None and self._wait:
            if time.monotonic() - started > self._wait_timeout_s:
                raise TimeoutError(f"no synthetic sample came within {self._wait_timeout_s:g} s (wait=True)")
            if self._while_waiting is not None and not self._while_waiting():
                ref = self._synthetic.next_ref(look_now=True)  # the last ones came after the last look
                break
            time.sleep(_WAIT_STEP_S)
            ref = self._synthetic.next_ref()
        plan.wait_s += time.monotonic() - started
        return ref

    def _next_index(self) -> int:
        for _ in range(2):
            self._indices = iter(self._sampler) if self._indices is None else self._indices
            index = next(self._indices, None)
            if index is not None:
                return int(index)
            self._indices = None
        raise ValueError("the sampler yields no index")

    def _take(self, targets: Sequence[Any]) -> None:
        plan = self._pending.popleft()
        for ref in self._counts.add(plan.slots, targets):
            self._synthetic.discard(ref)
        self._counts.wait_s += plan.wait_s
        self._step += 1

    def _give_back(self) -> None:
        """Undo the plans of batches that were never taken."""
        if not self._pending:
            return
        self._load_sampler(self._pending[0].sampler_state)
        refs = [slot.ref for plan in self._pending for slot in plan.slots if slot.ref is not None]
        if self._synthetic:
            self._synthetic.release(refs)
        self._pending.clear()

    def _sampler_state(self) -> Any:
        return self._sampler.state_dict() if hasattr(self._sampler, "state_dict") else None

    def _load_sampler(self, state: Any) -> None:
        if state is not None and hasattr(self._sampler, "load_state_dict"):
            self._sampler.load_state_dict(state)
        self._indices = None


class _Plan:
    """One batch between its planning and its use; the sampler's state is that before it."""

    def __init__(self, sampler_state: Any):
        self.sampler_state = sampler_state
        self.slots: list[Slot] = []
        self.wait_s = 0.0


def _to_lists(items: Sequence[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    return [image for image, _ in items], [target for _, target in items]
