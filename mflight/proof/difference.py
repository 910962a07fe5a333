"""Differences paired by seed: how sure they are, and what they say in one sentence. Pure: no files."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from scipy.stats import t as student_t

CONFIDENCE = 0.95
GROUPS = {"APr": "rare classes", "APc": "common", "APf": "frequent"}
IOU_WORDS = {"segm": "mask", "bbox": "box"}
AGAINST = {
    "equal_real": "as many real images",
    "equal_images": "as many images, all of them real",
    "equal_time": "real images alone for the same machine time",
}


class Difference(TypedDict):
    """What one arm has over another.

    Attributes:
        mean: of the differences, one for each seed; ``None`` where no seed has both figures.
        sd: their sample standard deviation; ``None`` with fewer than two.
        low: lower end of the 95 % Student-t interval of the mean; ``None`` with fewer than two.
        high: its upper end.
    """

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


def paired_difference(baseline: Sequence[float | None], treated: Sequence[float | None]) -> Difference:
    """Subtract seed by seed, and say how sure the mean is.

    Args:
        baseline: a figure of each seed; ``None`` where there was nothing to average.
        treated: the same figure under the treatment, of the same seeds in the same order.

    Returns:
        The difference treated minus baseline, over the seeds that have both.

    Raises:
        ValueError: if the numbers of seeds differ.

    Source:
        Student, "The probable error of a mean", Biometrika 1908: mean ± t(0.975, n - 1) sd / sqrt(n).

    Example:
        >>> paired_difference([10.0, 20.0], [13.0, 21.0])["mean"]
        2.0
    """
    if len(baseline) != len(treated):
        raise ValueError(
            f"both arms must have a figure for each seed, got {len(baseline)} and {len(treated)}"
        )
    pairs = zip(baseline, treated, strict=True)
    changes = [after - before for before, after in pairs if before is not None and after is not None]
    if not changes:
        return Difference(mean=None, sd=None, low=None, high=None)
    mean = statistics.mean(changes)
    if len(changes) == 1:
        return Difference(mean=mean, sd=None, low=None, high=None)
    sd = statistics.stdev(changes)
    half = float(student_t.ppf(0.5 + CONFIDENCE / 2, len(changes) - 1)) * sd / len(changes) ** 0.5
    return Difference(mean=mean, sd=sd, low=mean - half, high=mean + half)


def paired_differences(
    baseline: Mapping[str, Sequence[float | None]], treated: Mapping[str, Sequence[float | None]]
) -> dict[str, Difference]:
    """Return ``paired_difference`` of each figure that both arms have."""
    return {name: paired_difference(baseline[name], treated[name]) for name in baseline if name in treated}


def half_width(difference: Difference) -> float | None:
    """Return the number behind the ± of a 95 % interval; ``None`` where there is none."""
    if difference["low"] is None or difference["high"] is None:
        return None
    return (difference["high"] - difference["low"]) / 2


def direction(difference: Difference) -> int | None:
    """Return 1 or -1 where the interval leaves out 0, 0 where it includes it, ``None`` without one."""
    if difference["low"] is None or difference["high"] is None:
        return None
    return (difference["low"] > 0) - (difference["high"] < 0)


def answer(record: Mapping[str, Any]) -> str:
    """Say what synthesis gave and cost, in the first account of a proof.

    Args:
        record: of ``build_record``.

    Returns:
        One sentence.
    """
    account = next(iter(record["accounts"]))
    sentence = account_answer(record["accounts"][account]["difference"])
    ratio = record["machine_time"][account]
    return f"{sentence}, at {ratio:.1f} x the machine time." if account != "equal_time" else f"{sentence}."


def account_answer(differences: Mapping[str, Difference]) -> str:
    """Say what synthesis gave and cost in one account, without a full stop.

    Args:
        differences: by figure, such as ``segm/APr``.

    Returns:
        A verdict on the rare classes, or on all where none is rare, with the change of each group: mean and
        half the width of the 95 % interval. Where that includes 0, or there is none, it says so.

    Example:
        >>> account_answer({"segm/AP": {"mean": 2.0, "sd": None, "low": None, "high": None}})
        'One seed, which tells no uncertainty: all classes +2.0 mask AP'
    """
    iou_type = next((kind for kind in IOU_WORDS if f"{kind}/AP" in differences), "segm")
    groups = {
        name: words for name, words in GROUPS.items() if _is_told(differences.get(f"{iou_type}/{name}"))
    }
    if "APr" not in groups:
        groups = {"AP": "all classes", **groups}
    if not _is_told(differences.get(f"{iou_type}/{next(iter(groups))}")):
        return "Nothing to say: no class has an AP in both arms"
    changes = {words: differences[f"{iou_type}/{name}"] for name, words in groups.items()}
    units = [f" {IOU_WORDS[iou_type]} AP"] + [""] * (len(changes) - 1)
    told = [
        f"{words} {change(each, unit)}" for (words, each), unit in zip(changes.items(), units, strict=True)
    ]
    return f"{_verdict(changes)}: {', '.join(told)}"


def change(difference: Difference, unit: str = "") -> str:
    """Write a difference, such as ``+10.3 ± 2.1 mask AP``."""
    if difference["mean"] is None:
        return "unknown"
    half = half_width(difference)
    return f"{difference['mean']:+z.1f}" + (f" ± {half:.1f}" if half is not None else "") + unit


def _is_told(difference: Difference | None) -> bool:
    return difference is not None and difference["mean"] is not None


def _verdict(groups: Mapping[str, Difference]) -> str:
    """Judge the first group, and name those that have lost."""
    first, *_ = groups.values()
    if direction(first) is None:
        return "One seed, which tells no uncertainty"
    if direction(first) == -1:
        return "Synthesis did harm"
    harmed = " and ".join(words for words, difference in groups.items() if direction(difference) == -1)
    if direction(first) == 1:
        return "Synthesis helped" + (f", and cost the {harmed} classes" if harmed else "")
    return "Not told from chance" + (f", but the {harmed} classes lost" if harmed else "")
