import random
import time

import pytest
import torch

from mflight.data.mixing import MixedBatches, num_synthetic_slots, synthetic_slots


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

    def next_ref(self):
        self.asked += 1
        if self.asked <= self.appear_after:
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


def batches(source=None, **settings):
    real = Numbers()
    defaults = {"batch_size": 4, "synthetic_ratio": 0.25 if source else 0.0, "epoch_steps": 10}
    return MixedBatches(
        real=real, sampler=Cycle(), synthetic=source, transforms=augment, **{**defaults, **settings}
    )


def seen(epoch):
    return [[(target["image_id"], target["draw"]) for target in targets] for _, targets in epoch]


@pytest.mark.parametrize("trial", range(20))
def test_any_thousand_slots_hold_the_exact_share(trial):
    draws = random.Random(trial)
    ratio, batch_size = round(draws.random(), draws.randint(1, 3)), draws.randint(1, 17)
    flags = [flag for step in range(4000 // batch_size) for flag in synthetic_slots(step, batch_size, ratio)]
    for _ in range(20):
        start = draws.randrange(len(flags) - 1000)
        assert abs(sum(flags[start : start + 1000]) - 1000 * ratio) <= 1


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.29, 0.5, 1.0])
def test_warm_up_rises_linearly_to_the_exact_share(ratio):
    counts = [num_synthetic_slots(step, 8, ratio, warmup_steps=100) for step in range(300)]
    assert abs(sum(counts[:100]) - 8 * ratio * 99 / 2) <= 1
    assert abs(sum(counts[100:]) - 8 * ratio * 200) <= 1
    assert sum(counts[:20]) <= sum(counts[40:60]) <= sum(counts[80:100])
    assert max(counts) <= 8 and min(counts) >= 0
    assert counts[0] == 0


def test_slots_do_not_depend_on_what_came_before():
    assert [synthetic_slots(step, 4, 0.3, 7) for step in (9, 3, 9)] == [
        synthetic_slots(9, 4, 0.3, 7),
        synthetic_slots(3, 4, 0.3, 7),
        synthetic_slots(9, 4, 0.3, 7),
    ]


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


def test_share_without_a_source_is_refused():
    with pytest.raises(ValueError, match=r"synthetic_ratio is 0\.25 but there is no synthetic source"):
        batches(None, synthetic_ratio=0.25)
    with pytest.raises(ValueError, match=r"1\.5"):
        batches(Source(), synthetic_ratio=1.5)
    with pytest.raises(ValueError, match="got 0"):
        MixedBatches(real=Numbers(0), sampler=Cycle(), batch_size=1, epoch_steps=1)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [3, 10, 14])
def test_resumed_run_equals_one_that_was_never_stopped(taken, num_workers):
    settings = {"warmup_steps": 6, "synthetic_ratio": 0.5, "seed": 5}
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
    mixed = batches(source, num_workers=1, synthetic_ratio=1.0)
    for _ in mixed:
        break
    assert sum(source.counts.values()) > 4
    rest = [target["image_id"] for _, targets in mixed for target in targets]
    assert rest == [-1 - number for number in range(4, 40)]
    assert sum(source.counts.values()) == 40


def test_augmentation_differs_by_slot_rank_and_step_and_leaves_the_global_state_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = batches(Source()), batches(Source(), rank=1)
    draws = [draw for mixed in (first, second) for batch in seen(mixed) for _, draw in batch]
    assert len(set(draws)) == len(draws) == 80
    assert torch.equal(torch.get_rng_state(), state)


def test_finite_sampler_without_state_starts_again():
    mixed = MixedBatches(real=Numbers(), sampler=range(6), batch_size=4, epoch_steps=3)
    assert [target["image_id"] for _, targets in mixed for target in targets] == [0, 1, 2, 3, 4, 5] * 2
    assert mixed.state_dict()["sampler"] is None
