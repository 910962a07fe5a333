from collections import Counter
from itertools import chain, islice

import pytest
import torch

from mflight.data.samplers import (
    ClassAwareSampler,
    RepeatFactorSampler,
    build_sampler,
    category_frequencies,
    repeat_factors,
)


def test_factors_by_hand():
    # f = {1: 4/4, 2: 2/4, 3: 1/4}; t = 0.5: r = {1: 1, 2: 1, 3: sqrt(0.5 / 0.25) = sqrt(2)}
    images = [[1, 1, 2], [1, 3], [1, 2], [1]]
    frequency = category_frequencies(images)
    assert frequency == {1: 1.0, 2: 0.5, 3: 0.25}
    factors = repeat_factors(frequency, images, threshold=0.5)
    assert torch.allclose(factors, torch.tensor([1, 2**0.5, 1, 1], dtype=torch.float64))


def test_the_neediest_class_of_an_image_decides():
    # t = 1: r = {1: 1, 2: sqrt(1 / 0.25) = 2, 3: sqrt(1 / 0.04) = 5}
    frequency = {1: 1.0, 2: 0.25, 3: 0.04}
    assert repeat_factors(frequency, [[1], [1, 2], [2, 3, 1], []], threshold=1.0).tolist() == [1, 2, 5, 1]


def test_lvis_threshold_repeats_only_classes_in_less_than_a_thousandth_of_the_images():
    # sqrt(0.001 / 0.00001) = 10 for a class in 1 of 100,000 images
    assert repeat_factors({1: 0.002, 2: 0.00001}, [[1], [2]]).tolist() == pytest.approx([1, 10])


def test_threshold_zero_is_plain_shuffling():
    factors = repeat_factors({1: 0.001}, [[1]] * 50, threshold=0.0)
    sampler = RepeatFactorSampler(factors=factors, seed=3)
    epoch = list(islice(sampler, 50))
    assert sorted(epoch) == list(range(50)) and epoch != sorted(epoch)


def test_an_epoch_holds_each_image_as_often_as_its_factor_rounded_down_or_up():
    factors = torch.tensor([1.0, 2.5, 3.0, 1.25], dtype=torch.float64)
    sampler = RepeatFactorSampler(factors=factors, seed=0)
    counts = [Counter(sampler.epoch_indices(epoch).tolist()) for epoch in range(400)]
    assert all((c[0], c[2]) == (1, 3) and c[1] in (2, 3) and c[3] in (1, 2) for c in counts)
    # standard error of the mean of 400 draws of probability 1/2: 0.025
    assert sum(c[1] for c in counts) / 400 == pytest.approx(2.5, abs=0.1)
    assert sum(c[3] for c in counts) / 400 == pytest.approx(1.25, abs=0.1)


def test_ranks_share_an_epoch_without_overlap():
    factors = torch.full((10,), 1.3, dtype=torch.float64)
    epoch = RepeatFactorSampler(factors=factors, seed=5).epoch_indices(0).tolist()
    parts = []
    for rank in range(3):
        sampler = RepeatFactorSampler(factors=factors, seed=5, rank=rank, num_ranks=3)
        parts.append(list(islice(sampler, len(epoch[rank::3]))))
    assert Counter(chain(*parts)) == Counter(epoch)
    assert [len(part) for part in parts] == [len(epoch[rank::3]) for rank in range(3)]


def test_epochs_differ_and_the_seed_fixes_them():
    sampler = RepeatFactorSampler(factors=torch.ones(20), seed=1)
    same, other = (
        RepeatFactorSampler(factors=torch.ones(20), seed=1),
        RepeatFactorSampler(factors=torch.ones(20), seed=2),
    )
    assert sampler.epoch_indices(0).tolist() == same.epoch_indices(0).tolist()
    assert sampler.epoch_indices(0).tolist() != sampler.epoch_indices(1).tolist()
    assert sampler.epoch_indices(0).tolist() != other.epoch_indices(0).tolist()


@pytest.mark.parametrize("taken", [0, 7, 13, 14, 40])
def test_a_resumed_sampler_goes_on_exactly(taken):
    factors = torch.full((9,), 1.5, dtype=torch.float64)
    sampler = RepeatFactorSampler(factors=factors, seed=4)
    stream = iter(sampler)
    for _ in range(taken):
        next(stream)
    resumed = RepeatFactorSampler(factors=factors, seed=4)
    resumed.load_state_dict(sampler.state_dict())
    assert list(islice(resumed, 30)) == list(islice(stream, 30))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factors": torch.tensor([1.0, 0.5])}, "the least is 0.5"),
        ({"factors": torch.zeros(0)}, "there are none"),
        ({"factors": torch.ones(2), "rank": 2, "num_ranks": 2}, "less than num_ranks=2, got 2"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RepeatFactorSampler(**settings)


def test_faulty_frequencies_and_states_are_refused():
    with pytest.raises(ValueError, match=r"category 7 must lie in .* got 0"):
        repeat_factors({7: 0.0}, [[7]])
    with pytest.raises(ValueError, match=r"threshold must be >= 0, got -1"):
        repeat_factors({}, [[]], threshold=-1)
    state = RepeatFactorSampler(factors=torch.ones(2), seed=1).state_dict()
    with pytest.raises(ValueError, match="seed=1, here seed is 2"):
        RepeatFactorSampler(factors=torch.ones(2), seed=2).load_state_dict(state)


def test_every_class_comes_equally_often_and_gives_its_images_in_turn():
    # 9 entries, 3 classes: 3 each. Class 1 gives 3 of its 4 images, class 2 image 3 thrice, class 3 images 4
    # and 5 in one round and one of them once more; images 6 to 8 have no class
    images = [[1], [1], [1], [1, 2], [3], [3], [], [], []]
    sampler = ClassAwareSampler(image_categories=images, seed=1)
    for epoch in range(20):
        counts = Counter(sampler.epoch_indices(epoch).tolist())
        assert sum(counts.values()) == 9 and not counts.keys() & {6, 7, 8}
        assert sorted([counts[4], counts[5]]) == [1, 2]
        first = [counts[0], counts[1], counts[2], counts[3] - 3]
        assert sorted(first) == [0, 1, 1, 1]


def test_classes_come_in_rounds():
    # with one image a class, an entry tells its class: each third of the epoch holds all three
    images = [[10], [20], [30], [], [], [], [], [], []]
    epoch = ClassAwareSampler(image_categories=images, seed=2).epoch_indices(0).tolist()
    assert [sorted(epoch[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert len({tuple(epoch[i : i + 3]) for i in (0, 3, 6)}) > 1


def test_class_aware_ranks_share_an_epoch_and_go_on_exactly():
    images = [[i % 3, 3] for i in range(10)]
    samplers = [ClassAwareSampler(image_categories=images, seed=5, rank=r, num_ranks=2) for r in range(2)]
    epoch = samplers[0].epoch_indices(0).tolist()
    streams = [iter(sampler) for sampler in samplers]
    assert [next(streams[i % 2]) for i in range(10)] == epoch
    resumed = ClassAwareSampler(image_categories=images, seed=5, rank=1, num_ranks=2)
    resumed.load_state_dict(samplers[1].state_dict())
    assert list(islice(resumed, 12)) == list(islice(streams[1], 12))


def test_a_rank_without_an_image_is_refused():
    sampler = RepeatFactorSampler(factors=torch.ones(2), rank=2, num_ranks=3)
    with pytest.raises(ValueError, match="each of the 3 ranks, rank 2 gets none"):
        next(iter(sampler))


def test_class_aware_sampling_needs_an_instance():
    with pytest.raises(ValueError, match="needs an instance, 2 images have none"):
        ClassAwareSampler(image_categories=[[], []])


def test_the_config_names_the_sampler():
    images = [[1], [1], [1], [2]]
    repeat = build_sampler(images, sampling="repeat_factor", repeat_threshold=1.0, seed=1)
    # f = {1: 3/4, 2: 1/4}; t = 1: r = {1: sqrt(4/3), 2: 2}
    assert Counter(repeat.epoch_indices(0).tolist())[3] == 2
    aware = build_sampler(images, sampling="class_aware", repeat_threshold=1.0, seed=1)
    assert Counter(aware.epoch_indices(0).tolist())[3] == 2 and len(aware.epoch_indices(0)) == 4


def test_repeat_factors_of_real_and_synthetic_images_together():
    images = [[1], [1], [1], [1, 2]]  # f(2) = 1/4; in 1/2 of the synthetic images, a fifth of all
    place = {"seed": 0, "rank": 0, "num_ranks": 1}
    settings = {"sampling": "repeat_factor", "repeat_threshold": 1.0, **place}
    alone = build_sampler(images, **settings)
    mixed = build_sampler(images, **settings, synthetic_frequencies={2: 0.5, 9: 1.0}, synthetic_ratio=0.2)
    counts = [
        Counter(index for e in range(400) for index in s.epoch_indices(e).tolist()) for s in (alone, mixed)
    ]
    assert counts[0][3] / 400 == pytest.approx(2.0)  # sqrt(1 / 0.25)
    # f(1) = 0.8 * 1 = 0.8, f(2) = 0.8 * 0.25 + 0.2 * 0.5 = 0.3
    assert counts[1][3] / 400 == pytest.approx((1 / 0.3) ** 0.5, abs=0.08)
    assert counts[1][0] / 400 == pytest.approx((1 / 0.8) ** 0.5, abs=0.08)
