"""What a file holds that cannot be trained on: told always, refused where it is too much."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mflight.data.annotation_chunk import DROP_REASONS

MAX_SHARE = 0.1
"""From this share of the instances on, leaving out is no mishap but another dataset."""


@dataclass(frozen=True)
class LeftOut:
    """Annotations that are no instances, crowds not counted: their boxes are used.

    Attributes:
        reasons: how many by reason; those that occur.
        by_class: how many of each class, in label order.
        kept_by_class: instances of each class.
    """

    reasons: dict[str, int]
    by_class: tuple[int, ...]
    kept_by_class: tuple[int, ...]

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "LeftOut":
        """Take the counts out of the arrays of ``read_annotation_file``."""
        counts = dict(zip(DROP_REASONS[1:], arrays["num_dropped"][1:].tolist(), strict=True))
        return cls(
            reasons={reason: count for reason, count in counts.items() if count},
            by_class=tuple(arrays["left_out"].tolist()),
            kept_by_class=tuple(arrays["instance_counts"].tolist()),
        )

    def warning(self) -> str:
        """Return ``3 of 40 instances are left out (3 without an outline)``; empty where none is."""
        count = sum(self.by_class)
        if not count:
            return ""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.reasons.items())
        total = count + sum(self.kept_by_class)
        return f"{count:,} of {total:,} instances {'is' if count == 1 else 'are'} left out ({reasons})"

    def fault(self, names: list[str], max_share: float = MAX_SHARE) -> str:
        """Say that too much is left out; empty where it is not.

        Args:
            names: of the classes, in label order.
            max_share: the share of the instances from which on it is too much, as all of a class always is;
                above 1 nothing is.

        Returns:
            The sentence with the setting that allows it.
        """
        count, total = sum(self.by_class), sum(self.by_class) + sum(self.kept_by_class)
        columns = zip(names, self.by_class, self.kept_by_class, strict=True)
        gone = [name for name, lost, kept in columns if lost and not kept]
        if max_share > 1 or not count or not (count >= max_share * total or gone):
            return ""
        whole = f", all of {', '.join(map(repr, gone[:3]))}{', ...' if len(gone) > 3 else ''}" if gone else ""
        return f"{self.warning()}{whole}; data.max_left_out={max_share:g} refuses that, 2 allows any"
