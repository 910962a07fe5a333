"""The demand rule, against numbers worked by hand."""

import pytest

from mflight.synthesis.demand import ClassSignals, DemandRule, signals_before_training
from tests.unit.synthesis.squares import categories

RARE = ClassSignals(image_count=4, loss=3.0, ap=0.2, num_drawn=20, num_kept=5)
FREQUENT = ClassSignals(image_count=16, loss=1.0, ap=0.6, num_drawn=20, num_kept=15)
OFF = {"rarity_power": 0, "loss_power": 0, "ap_power": 0, "acceptance_power": 0, "floor": 0}


def shares(*signals, **settings):
    return tuple(DemandRule(**settings).shares(dict(enumerate(signals))).values())


def test_all_signals_together():
    # a = 20 / 40; A = 10 / 15 and 20 / 15; w = 1/2 * 3/2 * 0.8 * 3/2 = 0.9 and 1/4 * 1/2 * 0.4 * 3/4 = 0.0375
    assert shares(RARE, FREQUENT, floor=0) == pytest.approx((0.96, 0.04))
    assert shares(RARE, FREQUENT, floor=0.1) == pytest.approx((0.05 + 0.9 * 0.96, 0.05 + 0.9 * 0.04))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1 / 2, 1 / 2)),
        ({"rarity_power": 0.5}, (2 / 3, 1 / 3)),
        ({"rarity_power": 1}, (4 / 5, 1 / 5)),
        ({"loss_power": 1}, (3 / 4, 1 / 4)),
        ({"loss_power": 2}, (9 / 10, 1 / 10)),
        ({"ap_power": 1}, (2 / 3, 1 / 3)),
        ({"acceptance_power": 1}, (2 / 3, 1 / 3)),
        ({"acceptance_power": 1, "min_acceptance": 1.0}, (4 / 7, 3 / 7)),  # A = 1 and 4 / 3
        ({"floor": 1, "loss_power": 2}, (1 / 2, 1 / 2)),
    ],
)
def test_each_signal_alone(settings, expected):
    assert shares(RARE, FREQUENT, **{**OFF, **settings}) == pytest.approx(expected)


def test_what_is_not_known_is_neutral():
    unknown = ClassSignals(image_count=4)
    assert shares(RARE, FREQUENT, unknown, **{**OFF, "loss_power": 1}) == pytest.approx((1 / 2, 1 / 6, 1 / 3))
    assert shares(RARE, FREQUENT, unknown, **{**OFF, "ap_power": 1}) == pytest.approx(
        (0.8 / 1.8, 0.4 / 1.8, 0.6 / 1.8)  # the mean of the known APs is 0.4
    )
    assert shares(unknown, unknown) == (0.5, 0.5)
    never_kept = ClassSignals(image_count=4, num_drawn=50)
    assert shares(never_kept, unknown) == (0.5, 0.5)  # nothing at all was kept: nothing is learnt from it


def test_a_hopeless_class_is_asked_for_five_times_as_often_at_most():
    hopeless = ClassSignals(image_count=4, num_drawn=10_000)
    good = ClassSignals(image_count=4, num_drawn=10_000, num_kept=10_000)
    low, high = shares(good, hopeless, floor=0, min_acceptance=0.2)
    acceptance_of_good = (10_000 + 5) / (10_010 * 0.5)
    assert high / low == pytest.approx(acceptance_of_good / 0.2)


def test_no_class_disappears():
    perfect = ClassSignals(image_count=5000, loss=0.0, ap=1.0)
    assert shares(RARE, perfect, floor=0.1) == pytest.approx((0.95, 0.05))
    assert shares(perfect, perfect) == (0.5, 0.5)


def test_before_training_only_rarity_is_known():
    signals = signals_before_training(categories())
    assert signals == {
        2: ClassSignals(3), 5: ClassSignals(200), 9: ClassSignals(7), 11: ClassSignals(40)
    }  # fmt: skip
    found = DemandRule(rarity_power=1, floor=0).shares(signals)
    assert found[2] / found[5] == pytest.approx(200 / 3) and sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"floor": 1.5}, "1.5"),
        ({"rarity_power": -0.5}, "-0.5"),
        ({"min_acceptance": 0.0}, "0.0"),
        ({"prior_regions": 0.0}, "0.0"),
        ({"powers": 1}, "powers"),
    ],
)
def test_settings_out_of_range_are_refused(settings, value):
    with pytest.raises(ValueError, match=value):
        DemandRule(**settings)


def test_no_class_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one class, got none"):
        DemandRule().shares({})
