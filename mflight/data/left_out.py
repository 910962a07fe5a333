"""What a file holds that cannot be trained on: told always, refused where it is too much."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mflight.data.annotation_chunk import DROP_REASONS

MAX_SHARE = 0.1
"""From this share of the instances on, leaving out is no mishap but another dataset."""

_CROWDS = "marked as crowds (iscrowd=1; CVAT marks each mask so that was drawn: set it to 0 there)"


@dataclass(frozen=True)
class LeftOut:
    """Annotations that are no instances.

    Attributes:
        by_reason: int64[R, C] of ``DROP_REASONS`` and classes in label order.
        kept: int64[C], instances of each class.
    """

    by_reason: np.ndarray
    kept: np.ndarray

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "LeftOut":
        """Take the counts out of the arrays of ``read_annotation_file``."""
        return cls(by_reason=arrays["num_dropped"], kept=arrays["instance_counts"])

    def warning(self) -> str:
        """Return ``3 of 40 instances are left out: 3 without an outline``; empty where none is."""
        counts = self.by_reason.sum(axis=1).tolist()
        count = sum(counts)
        if not count:
            return ""
        told = (_CROWDS, *DROP_REASONS[1:])
        reasons = ", ".join(
            f"{number:,} {reason}" for number, reason in zip(counts, told, strict=True) if number
        )
        verb = "is" if count == 1 else "are"
        return f"{count:,} of {count + int(self.kept.sum()):,} instances {verb} left out: {reasons}"

    def fault(self, names: list[str], max_share: float = MAX_SHARE) -> str:
        """Say that too much is left out; empty where it is not.

        Crowds are a part of COCO, whose boxes are used: they are too many only if a class has nothing else.

        Args:
            names: of the classes, in label order.
            max_share: the share of the instances from which on it is too much, as all of a class always is;
                above 1 nothing is.

        Returns:
            The sentence with the setting that allows it; a file without any annotation is never allowed.
        """
        crowds, lost = self.by_reason[0], self.by_reason[1:].sum(axis=0)
        total = int(self.by_reason.sum() + self.kept.sum())
        if not total:
            return "it lists no annotations, so nothing can be learned from it or scored on it"
        if crowds.sum() >= max_share * total:
            lost = lost + np.where(self.kept == 0, crowds, 0)
        gone = [name for name, is_gone in zip(names, (lost > 0) & (self.kept == 0), strict=True) if is_gone]
        if max_share > 1 or not lost.any() or not (lost.sum() >= max_share * total or gone):
            return ""
        whole = f"; all of {', '.join(map(repr, gone[:3]))}{', ...' if len(gone) > 3 else ''}" if gone else ""
        return f"{self.warning()}{whole}; data.max_left_out={max_share:g} refuses that, 2 allows any"
