import random
from fractions import Fraction

import pytest

from mflight.data.share import SyntheticShare


def synthetic_counts(share, steps, num_ranks=1):
    return [[share.counts(step, rank)[1] for rank in range(num_ranks)] for step in range(steps)]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("mixing", ["add", "replace"])
@pytest.mark.parametrize("trial", range(10))
def test_each_step_holds_its_number_to_within_one_image_over_all_ranks(trial, mixing, num_ranks):
    draws = random.Random(f"{trial}/{mixing}/{num_ranks}")
    num_steps, batch_size = draws.randint(1, 400), draws.choice([4, 8, 16])
    warmup, cooldown, ratio = draws.randint(0, 200), draws.random(), round(0.9 * draws.random(), 2)
    share = SyntheticShare(
        mixing=mixing,
        batch_size=batch_size,
        synthetic_ratio=ratio,
        warmup_steps=warmup,
        cooldown_ratio=cooldown,
        num_steps=num_steps,
        num_ranks=num_ranks,
    )
    falling = round(cooldown * num_steps)
    full = batch_size * (ratio / (1 - ratio) if mixing == "add" else ratio)
    total, wanted = 0, 0.0
    for step, by_rank in enumerate(synthetic_counts(share, num_steps, num_ranks)):
        warmth = min(1, step / warmup if warmup else 1, (num_steps - step) / falling if falling else 1)
        total, wanted = total + sum(by_rank), wanted + full * warmth
        assert abs(sum(by_rank) - full * warmth) < 1 + 1e-9
        assert abs(total - wanted) < 1 + 1e-9  # and so has any run of steps from the first
        assert max(by_rank) - min(by_rank) <= 1
        num_images = [sum(share.counts(step, rank)) for rank in range(num_ranks)]
        real = batch_size // num_ranks
        assert num_images == ([real] * num_ranks if mixing == "replace" else [real + n for n in by_rank])


def test_paper_share_on_eight_ranks_is_in_every_step():
    share = SyntheticShare(mixing="replace", batch_size=16, synthetic_ratio=0.07, num_ranks=8)
    assert {sum(by_rank) for by_rank in synthetic_counts(share, 1000, 8)} == {1, 2}
    totals = [sum(one) for one in zip(*synthetic_counts(share, 1000, 8), strict=True)]
    assert sum(totals) == 1120 and max(totals) - min(totals) <= 1


def test_share_among_all_images_is_the_ratio_in_both_modes():
    for mixing in ("add", "replace"):
        share = SyntheticShare(mixing=mixing, batch_size=4, synthetic_ratio=0.2)
        real, synthetic = (sum(each) for each in zip(*map(share.counts, range(1000)), strict=True))
        assert synthetic / (real + synthetic) == pytest.approx(0.2, abs=1e-9)


def test_cool_down_falls_to_nothing_by_hand():
    share = SyntheticShare(batch_size=8, synthetic_ratio=0.5, cooldown_ratio=0.4, num_steps=10)
    # 8 a step until step 6, then 8, 6, 4, 2
    assert [share.counts(step) for step in range(10)] == [(8, 8)] * 7 + [(8, 6), (8, 4), (8, 2)]


def test_warm_up_by_hand():
    share = SyntheticShare(mixing="replace", batch_size=4, synthetic_ratio=0.5, warmup_steps=4)
    # 2 a step at last; 0, 0.5, 1, 1.5 before
    assert [share.counts(step)[1] for step in range(7)] == [0, 0, 1, 2, 2, 2, 2]


def test_ratio_is_exact_over_a_long_training():
    share = SyntheticShare(mixing="replace", batch_size=3, synthetic_ratio=0.1)
    assert sum(share.counts(step)[1] for step in range(100_000)) == Fraction(1, 10) * 300_000


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="below 1 with mixing 'add'"):
        SyntheticShare(batch_size=4, synthetic_ratio=1.0)
    with pytest.raises(ValueError, match="batch_size=6 must be a multiple of the 4 training ranks"):
        SyntheticShare(batch_size=6, num_ranks=4)
    with pytest.raises(ValueError, match=r"cooldown_ratio=0\.3 needs a training with an end"):
        SyntheticShare(batch_size=4, cooldown_ratio=0.3).over(num_steps=None, num_ranks=1)
    with pytest.raises(ValueError, match=r"1\.5"):
        SyntheticShare(batch_size=4, synthetic_ratio=1.5)
