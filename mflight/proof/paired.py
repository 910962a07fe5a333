"""Differences paired by seed, with their uncertainty. Pure: numbers in, numbers out."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

from scipy.stats import t as student_t

CONFIDENCE = 0.95


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
