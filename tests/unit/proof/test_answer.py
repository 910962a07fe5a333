import pytest

from mflight.proof.answer import account_answer, answer, change
from mflight.proof.paired import paired_difference


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
