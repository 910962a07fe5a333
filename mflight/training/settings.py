"""Rules between settings of the data, checked before anything expensive."""

from collections.abc import Callable
from typing import Any

from mflight.data.downscale import RandomDownscale


def check_synthesis(
    synthetic_ratio: float,
    source: Any,
    downscale: RandomDownscale | None,
    paste: Callable | None,
) -> None:
    """Raise unless the settings of synthetic images agree.

    Args:
        synthetic_ratio: share of synthetic images.
        source: of what fills their slots; nothing if it is false.
        downscale: makes synthetic images smaller.
        paste: pastes synthetic instances.

    Raises:
        ValueError: if there is a share without a source, or if both ``downscale`` and ``paste`` would set the
            scale of synthetic instances.
    """
    if synthetic_ratio > 0 and not source:
        raise ValueError(
            f"synthesis.synthetic_ratio={synthetic_ratio} needs a source of synthetic images: "
            "choose synthesis=online or synthesis=replay, or set synthesis.synthetic_ratio=0"
        )
    if paste is not None and downscale is not None and downscale.scale_range != (1.0, 1.0):
        raise ValueError(
            f"synthesis.scale_range={downscale.scale_range} must be (1, 1) with synthesis/paste: there "
            "instances have the scale of their class"
        )
