"""The answer of a proof in one sentence, with its uncertainty. Pure text."""

from collections.abc import Mapping
from typing import Any

from mflight.proof.paired import Difference, direction, half_width

GROUPS = {"APr": "rare classes", "APc": "common", "APf": "frequent"}
IOU_WORDS = {"segm": "mask", "bbox": "box"}
AGAINST = {
    "equal_real": "as many real images",
    "equal_images": "as many images, all of them real",
    "equal_time": "real images alone for the same machine time",
}


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
