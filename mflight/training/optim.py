"""Learning-rate schedules in optimizer steps."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, validate_call
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Steps = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@validate_call(config=ConfigDict(arbitrary_types_allowed=True))
def warmup_multistep(
    optimizer: Optimizer,
    *,
    warmup_steps: Steps = 1000,
    warmup_start: Share = 0.001,
    milestones_steps: Sequence[Steps] = (60_000, 80_000),
    gamma: Share = 0.1,
    total_steps: int = -1,
) -> LambdaLR:
    """Rise linearly, then multiply the rate by ``gamma`` at each milestone: detectron2's "1x" and "2x".

    Args:
        optimizer: whose rates are scaled.
        warmup_steps: steps of the rise.
        warmup_start: share of the rate at step 0.
        milestones_steps: when the rate falls.
        gamma: factor of each fall.
        total_steps: steps of the whole run; -1 where that is open.

    Returns:
        the schedule, to be stepped once an optimizer step.

    Raises:
        ValueError: if the run ends before a milestone.
    """
    if total_steps >= 0 and any(step >= total_steps for step in milestones_steps):
        raise ValueError(
            f"optim.lr_schedule.milestones_steps must lie below trainer.max_steps={total_steps}, got "
            f"{list(milestones_steps)}: choose the schedule of this length (optim=sgd_1x goes with "
            "trainer=lvis_1x, sgd_2x with lvis_2x), or set milestones_steps=[] for a short trial"
        )

    def factor(step: int) -> float:
        warm = 1.0 if step >= warmup_steps else warmup_start + (1 - warmup_start) * step / warmup_steps
        return warm * gamma ** sum(step >= milestone for milestone in milestones_steps)

    return LambdaLR(optimizer, factor)


@validate_call(config=ConfigDict(arbitrary_types_allowed=True))
def warmup_cosine(
    optimizer: Optimizer,
    *,
    total_steps: Annotated[int, Field(ge=1)],
    warmup_steps: Steps = 0,
    warmup_start: Share | None = None,
    final: Share = 0.0,
    over: Literal["rest", "whole"] = "rest",
) -> LambdaLR:
    """Rise linearly, then fall along half a cosine to ``final`` times the rate at ``total_steps``.

    Args:
        optimizer: whose rates are scaled.
        total_steps: steps of the whole run.
        warmup_steps: steps of the rise.
        warmup_start: share of the rate at step 0; ``None``: that of the rise's first step.
        final: share of the rate at the end.
        over: steps that the cosine spans: the ``"rest"`` after the rise, which then ends at the whole rate;
            or the ``"whole"`` run, which the rise joins where the cosine is then: detectron2's
            ``WarmupCosineLR``.

    Returns:
        the schedule, to be stepped once an optimizer step.
    """
    start = 0 if over == "whole" else warmup_steps

    def cosine(step: int) -> float:
        done = min(1.0, (step - start) / max(1, total_steps - start))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    def factor(step: int) -> float:
        if step >= warmup_steps:
            return cosine(step)
        if warmup_start is None:
            return (step + 1) / warmup_steps * cosine(warmup_steps)
        return warmup_start + (cosine(warmup_steps) - warmup_start) * step / warmup_steps

    return LambdaLR(optimizer, factor)
