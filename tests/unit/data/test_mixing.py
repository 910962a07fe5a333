import time

import pytest
import torch

from mflight.data.mixing import MixedBatches
from mflight.data.share import SyntheticShare


class Numbers:
    """Real images that show their index, with one random number each as their augmentation."""

    def __init__(self, count=50):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        target = {"image_id": index, "is_synthetic": False, "draw": torch.rand(()).item()}
        return torch.full((3, 4, 4), index, dtype=torch.uint8), target


class Cycle:
    """An endless sampler with a state."""

    def __init__(self, count=50):
        self.count, self.position = count, 0

    def __iter__(self):
        while True:
            index = self.position * 7 % self.count
            self.position += 1
            yield index

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Source:
    """Synthetic samples 0, 1, 2, ..., ``uses`` times each; ``ready`` are there, some cannot be read."""

    def __init__(self, ready=10**6, uses=1, unreadable=(), appear_after=0):
        self.ready, self.uses, self.unreadable, self.appear_after = ready, uses, set(unreadable), appear_after
        self.counts, self.discarded, self.asked = {}, [], 0

    def next_ref(self, *, look_now=False):
        self.asked += 1
        if self.asked <= self.appear_after and not look_now:
            return None
        ref = next((n for n in range(self.ready) if self.counts.get(n, 0) < self.uses), None)
        if ref is not None:
            self.counts[ref] = self.counts.get(ref, 0) + 1
        return ref

    def num_uses(self, ref):
        return self.counts[ref]

    def read(self, ref):
        if ref in self.unreadable:
            raise ValueError(f"sample {ref} is torn")
        return torch.full((3, 4, 4), 200, dtype=torch.uint8), {"image_id": -1 - ref, "is_synthetic": True}

    def release(self, refs):
        for ref in refs:
            self.counts[ref] -= 1

    def discard(self, ref):
        self.discarded.append(ref)

    def state_dict(self, pending=()):
        counts = dict(self.counts)
        for ref in pending:
            counts[ref] -= 1
        return {"counts": {ref: count for ref, count in counts.items() if count}}

    def load_state_dict(self, state):
        self.counts = dict(state["counts"])


def augment(image, target):
    return image, {**target, "draw": torch.rand(()).item()}


def batches(source=None, *, share=None, **settings):
    """Four slots a step, one of them synthetic where there is a source."""
    share = {
        "mixing": "replace",
        "batch_size": 4,
        "synthetic_ratio": 0.25 if source else 0.0,
        **(share or {}),
    }
    return MixedBatches(
        real=Numbers(),
        sampler=Cycle(),
        share=SyntheticShare(**share),
        synthetic=source,
        transforms=augment,
        **{"epoch_steps": 10, **settings},
    )


def seen(epoch):
    return [[(target["image_id"], target["draw"]) for target in targets] for _, targets in epoch]


def test_every_batch_holds_its_share_and_all_is_counted():
    mixed = batches(Source(uses=2))
    for images, targets in mixed:
        assert len(images) == len(targets) == 4
        assert [target["is_synthetic"] for target in targets].count(True) == 1
    counts = mixed.counts
    assert (counts.real, counts.fresh, counts.reused, counts.fallback) == (30, 5, 5, 0)
    assert counts.synthetic_share == 0.25
    assert len(mixed) == 10


def test_empty_source_falls_back_to_real_images_without_waiting():
    mixed = batches(Source(ready=3))
    started = time.monotonic()
    synthetic = sum(target["is_synthetic"] for _, targets in mixed for target in targets)
    assert time.monotonic() - started < 5
    assert synthetic == 3
    assert (mixed.counts.fresh, mixed.counts.fallback, mixed.counts.real) == (3, 7, 30)
    assert mixed.counts.wait_s < 5  # it only asked


def test_unreadable_sample_falls_back_is_counted_and_never_asked_for_again():
    source = Source(unreadable=[2, 4])
    mixed = batches(source)
    images = [target["image_id"] for _, targets in mixed for target in targets]
    assert -3 not in images and -5 not in images and -4 in images
    assert (mixed.counts.fresh, mixed.counts.fallback, mixed.counts.unreadable) == (8, 2, 2)
    assert source.discarded == [2, 4]


def test_waiting_waits_for_a_sample_and_says_so():
    mixed = batches(Source(appear_after=3), wait=True, epoch_steps=2)
    assert sum(target["is_synthetic"] for _, targets in mixed for target in targets) == 2
    assert 0.1 < mixed.counts.wait_s < 5
    with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
        list(batches(Source(ready=0), wait=True, wait_timeout_s=0.2))


def test_waiting_ends_when_nothing_more_will_come():
    looks = iter([True, True, *[False] * 99])
    mixed = batches(Source(ready=3), wait=True, while_waiting=lambda: next(looks))
    assert sum(target["is_synthetic"] for _, targets in mixed for target in targets) == 3
    assert (mixed.counts.fresh, mixed.counts.fallback) == (3, 7)
    assert mixed.counts.wait_s < 2


def test_what_came_between_the_last_look_and_the_end_is_used():
    mixed = batches(Source(ready=3, appear_after=10**6), wait=True, while_waiting=lambda: False)
    list(mixed)
    assert (mixed.counts.fresh, mixed.counts.fallback) == (3, 7)


def test_share_without_a_source_is_refused():
    with pytest.raises(ValueError, match="needs a source of them, got synthetic=None"):
        batches(None, share={"synthetic_ratio": 0.25})
    with pytest.raises(ValueError, match="got 0"):
        MixedBatches(real=Numbers(0), sampler=Cycle(), share=SyntheticShare(batch_size=1), epoch_steps=1)


def test_added_images_leave_every_real_one_in_its_batch():
    share = {"mixing": "add", "synthetic_ratio": 0.2}
    plain, mixed = batches(), batches(Source(), share=share)
    for (_, real), (_, targets) in zip(plain, mixed, strict=True):
        assert [target["image_id"] for target in targets[:4]] == [target["image_id"] for target in real]
        assert [target["is_synthetic"] for target in targets] == [False] * 4 + [True]
    assert (mixed.counts.real, mixed.counts.fresh) == (40, 10)


def test_control_has_as_many_images_at_each_step_and_all_are_real():
    share = {
        "mixing": "add",
        "synthetic_ratio": 0.2,
        "warmup_steps": 4,
        "cooldown_ratio": 0.5,
        "num_steps": 10,
    }
    mixed, control = batches(Source(), share=share), batches(share=share, control=True)
    sizes = [len(images) for images, _ in mixed]
    assert sizes == [len(images) for images, _ in control] and set(sizes) == {4, 5}
    assert (control.counts.real, control.counts.synthetic_share) == (sum(sizes), 0.0)
    assert control.counts.fallback == 0


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [3, 10, 14])
def test_resumed_run_equals_one_that_was_never_stopped(taken, num_workers):
    share = {"warmup_steps": 6, "synthetic_ratio": 0.5, "cooldown_ratio": 0.6, "num_steps": 30}
    settings = {"share": share, "seed": 5}  # 14 lies in the middle of the cool-down
    whole = batches(Source(ready=15, uses=3), **settings)
    expected = [batch for _ in range(3) for batch in seen(whole)]

    first, states = batches(Source(ready=15, uses=3), num_workers=num_workers, **settings), []
    before = []
    while len(before) < taken:
        for _, targets in first:
            before.append([(target["image_id"], target["draw"]) for target in targets])
            if len(before) == taken:
                states.append(first.state_dict())  # with later batches prefetched
                break
    resumed = batches(Source(ready=15, uses=3), num_workers=num_workers, **settings)
    resumed.load_state_dict(states[0])
    assert resumed.step == taken
    after = [batch for _ in range(3 - taken // 10) for batch in seen(resumed)]
    assert before + after == expected
    assert len(seen(resumed)) == 10
    assert resumed.counts.real + resumed.counts.fallback + resumed.counts.fresh + resumed.counts.reused == 160


def test_abandoned_epoch_gives_back_what_was_prefetched():
    source = Source()
    mixed = batches(source, num_workers=1, share={"synthetic_ratio": 1.0})
    for _ in mixed:
        break
    assert sum(source.counts.values()) > 4
    rest = [target["image_id"] for _, targets in mixed for target in targets]
    assert rest == [-1 - number for number in range(4, 40)]
    assert sum(source.counts.values()) == 40


def test_augmentation_differs_by_slot_rank_and_step_and_leaves_the_global_state_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    share = {"batch_size": 8, "num_ranks": 2}
    first, second = (batches(Source(), share=share, rank=rank) for rank in range(2))
    draws = [draw for mixed in (first, second) for batch in seen(mixed) for _, draw in batch]
    assert len(set(draws)) == len(draws) == 80
    assert torch.equal(torch.get_rng_state(), state)


def test_finite_sampler_without_state_starts_again():
    mixed = MixedBatches(real=Numbers(), sampler=range(6), share=SyntheticShare(batch_size=4), epoch_steps=3)
    assert [target["image_id"] for _, targets in mixed for target in targets] == [0, 1, 2, 3, 4, 5] * 2
    assert mixed.state_dict()["sampler"] is None
