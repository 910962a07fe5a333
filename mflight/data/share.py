"""How many images of each step are synthetic, over all ranks: a pure function of the step."""

import dataclasses
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

Mixing = Literal["add", "replace"]


@dataclass(frozen=True, kw_only=True)
class SyntheticShare:
    """Counts the images of a step: its real ones and its synthetic ones, of each rank.

    The number of synthetic images rises with ``step / warmup_steps`` to its full value, and falls in the same
    way to 0 over the last ``cooldown_ratio`` of the steps. A step holds what the running sum of these numbers
    has reached in whole images, so each step has its number to within one image, and so has any run of steps.
    The images of a step are dealt to the ranks in turn, and the next step goes on where it ended.

    Attributes:
        mixing: ``add`` puts synthetic images on top of ``batch_size`` real ones; ``replace`` puts them in
            the place of real ones.
        batch_size: images a step over all ranks; under ``add`` the real ones only.
        synthetic_ratio: full share of synthetic images among all images of a step, in [0, 1]; under ``add``
            below 1.
        warmup_steps: steps over which their number rises from 0.
        cooldown_ratio: share of all steps, at the end, over which it falls to 0, in [0, 1].
        num_steps: of the whole training; ``None`` if it has no end or is not known yet.
        num_ranks: training processes; each takes an equal part of ``batch_size``.

    Raises:
        ValueError: if ``add`` is to make all images synthetic, or if ``batch_size`` is no multiple of
            ``num_ranks``.

    Example:
        >>> share = SyntheticShare(mixing="add", batch_size=4, synthetic_ratio=0.2)
        >>> share.counts(step=7)
        (4, 1)
    """

    mixing: Mixing = "add"
    batch_size: Annotated[int, Field(ge=1)] = 16
    synthetic_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    cooldown_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    num_steps: Annotated[int, Field(ge=1)] | None = None
    num_ranks: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.mixing == "add" and self.synthetic_ratio == 1.0:
            raise ValueError(
                "synthetic_ratio must be below 1 with mixing 'add', which keeps all real images, got 1.0"
            )
        if self.batch_size % self.num_ranks:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of the {self.num_ranks} training ranks"
            )

    def over(self, *, num_steps: int | None, num_ranks: int) -> "SyntheticShare":
        """Return the same share for a training of so many steps and ranks.

        Args:
            num_steps: ``None`` if nothing bounds them.
            num_ranks: training processes.

        Returns:
            A copy.

        Raises:
            ValueError: if there is a cool-down and no end to fall to.
        """
        if self.cooldown_ratio and num_steps is None:
            raise ValueError(
                f"cooldown_ratio={self.cooldown_ratio} needs a training with an end: set trainer.max_steps"
            )
        return dataclasses.replace(self, num_steps=num_steps, num_ranks=num_ranks)

    def counts(self, step: int, rank: int = 0) -> tuple[int, int]:
        """Return how many real and how many synthetic images a rank trains on at a step, from 0."""
        ratio = Fraction(self.synthetic_ratio).limit_denominator(10**6)
        full = self.batch_size * (ratio / (1 - ratio) if self.mixing == "add" else ratio)
        first, end = (int(full * self._warmth_before(each)) for each in (step, step + 1))
        # of the synthetic images first, ..., end - 1 of the training a rank takes each num_ranks-th
        num_synthetic = len(range(first + (rank - first) % self.num_ranks, end, self.num_ranks))
        num_replaced = num_synthetic if self.mixing == "replace" else 0
        return self.batch_size // self.num_ranks - num_replaced, num_synthetic

    def _warmth_before(self, step: int) -> Fraction:
        """Return the sum over all steps before: each counts 1, less while it warms up or cools down."""
        cooldown_steps = round(self.cooldown_ratio * (self.num_steps or 0))
        if not cooldown_steps:
            return _risen(step, self.warmup_steps)
        # step t counts min(1, t / warmup, (num_steps - t) / cooldown); after the turn the last is the least
        step = min(step, self.num_steps)
        turn = min(step, self.num_steps * self.warmup_steps // (self.warmup_steps + cooldown_steps) + 1)
        from_end, turn_from_end = self.num_steps - step + 1, self.num_steps - turn + 1
        fallen = _risen(turn_from_end, cooldown_steps) - _risen(from_end, cooldown_steps)
        return _risen(turn, self.warmup_steps) + fallen


def _risen(num_steps: int, warmup_steps: int) -> Fraction:
    """Return the sum of ``min(1, step / warmup_steps)`` over the steps ``0 .. num_steps - 1``."""
    rising = min(num_steps, warmup_steps)
    risen = Fraction(rising * (rising - 1), 2 * warmup_steps) if rising else Fraction(0)
    return risen + (num_steps - rising)
