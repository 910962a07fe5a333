"""Worked by hand: t(0.975, 1) = 12.7062, t(0.975, 2) = 4.30265 (any table of Student's t)."""

import pytest

from mflight.proof.difference import (
    account_answer,
    answer,
    change,
    direction,
    half_width,
    paired_difference,
    paired_differences,
)


def test_three_seeds_by_hand():
    # changes 1, 2, 3: mean 2, sd 1, half width 4.30265 / sqrt(3) = 2.48414
    difference = paired_difference([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert (difference["mean"], difference["sd"]) == (2.0, 1.0)
    assert half_width(difference) == pytest.approx(2.48414, abs=1e-5)
    assert difference["low"] == pytest.approx(-0.48414, abs=1e-5)
    assert direction(difference) == 0


def test_pairing_takes_the_spread_between_seeds_away():
    # the seeds lie 50 apart, the changes 0.2: sd 0.141421, half width 12.7062 * 0.1
    difference = paired_difference([10.0, 60.0], [15.0, 65.2])
    assert difference["sd"] == pytest.approx(0.141421, abs=1e-6)
    assert half_width(difference) == pytest.approx(1.27062, abs=1e-5)
    assert direction(difference) == 1
    assert direction(paired_difference([15.0, 65.2], [10.0, 60.0])) == -1


def test_one_seed_has_no_interval():
    difference = paired_difference([40.0], [43.5])
    assert difference == {"mean": 3.5, "sd": None, "low": None, "high": None}
    assert half_width(difference) is None and direction(difference) is None


def test_seeds_without_a_figure_are_left_out():
    difference = paired_difference([None, 10.0, 20.0], [5.0, 12.0, 24.0])
    assert (difference["mean"], difference["sd"]) == (3.0, pytest.approx(2.0**0.5))
    assert paired_difference([None], [1.0])["mean"] is None


def test_figures_are_paired_by_name_and_seeds_must_agree():
    assert list(paired_differences({"segm/AP": [1.0], "segm/APr": [2.0]}, {"segm/APr": [5.0]})) == [
        "segm/APr"
    ]
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])


def differences(**figures):
    """Give each figure the changes of three seeds: ``APr=(9, 10, 11)``."""
    return {f"segm/{name}": paired_difference([0.0] * len(own), own) for name, own in figures.items()}


GAIN, LOSS, CHANCE = (9.0, 10.0, 11.0), (-3.0, -2.0, -1.9), (-4.0, 1.0, 5.0)  # t(0.975, 2) / sqrt(3) = 2.484


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        (
            {"AP": GAIN, "APr": GAIN, "APf": CHANCE},
            "Synthesis helped: rare classes +10.0 ± 2.5 mask AP, frequent +0.7",
        ),
        (
            {"AP": GAIN, "APr": GAIN, "APf": LOSS},
            "Synthesis helped, and cost the frequent classes: rare classes",
        ),
        (
            {"AP": GAIN, "APr": CHANCE, "APc": GAIN},
            "Not told from chance: rare classes +0.7 ± 11.2 mask AP, common",
        ),
        (
            {"AP": GAIN, "APr": CHANCE, "APf": LOSS},
            "Not told from chance, but the frequent classes lost: rare",
        ),
        ({"AP": GAIN, "APr": LOSS}, "Synthesis did harm: rare classes -2.3 ± 1.5 mask AP"),
        ({"AP": GAIN, "APf": CHANCE}, "Synthesis helped: all classes +10.0 ± 2.5 mask AP, frequent"),
        ({"AP": (2.0,)}, "One seed, which tells no uncertainty: all classes +2.0 mask AP"),
        ({"AP": (None,)}, "Nothing to say: no class has an AP in both arms"),
    ],
)
def test_the_verdict_follows_the_intervals(figures, verdict):
    assert account_answer(differences(**figures)).startswith(verdict)


def test_the_answer_tells_the_machine_time_of_the_first_account():
    found = {"difference": differences(AP=GAIN, APr=GAIN)}
    record = {
        "accounts": {"equal_real": found, "equal_time": found},
        "machine_time": {"equal_real": 1.42, "equal_time": 1},
    }
    assert answer(record) == "Synthesis helped: rare classes +10.0 ± 2.5 mask AP, at 1.4 x the machine time."
    del record["accounts"]["equal_real"]
    assert answer(record) == "Synthesis helped: rare classes +10.0 ± 2.5 mask AP."


def test_a_detector_without_masks_is_told_of_its_boxes_and_no_change_has_no_minus():
    assert "+10.0 ± 2.5 box AP" in account_answer({"bbox/AP": paired_difference([0.0] * 3, GAIN)})
    assert change(paired_difference([0.0], [-0.04])) == "+0.0"
