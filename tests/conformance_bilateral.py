"""The bilateral solver against a reference file: figures only, the verdict is the caller's."""

from pathlib import Path

import numpy as np

from mflight.functional.bilateral import refine_mask


def bilateral_case(path: str | Path) -> dict[str, float]:
    """Refine the mask of a ``bilateralS.npz`` and compare with what the published program made of it.

    Args:
        path: file with ``image``, ``shape``, ``coarse``, ``soft1``, ``soft2`` and ``mask``.

    Returns:
        ``soft1_close``, ``soft2_close``: share of the pixels within 1 % of the full range of the reference's
        soft output; ``soft1_max_error``, ``soft2_max_error`` as a share of that range; ``mask_iou``.
    """
    with np.load(path) as case:
        shape = tuple(int(side) for side in case["shape"])
        coarse, expected = (_unpack(case[name], shape) for name in ("coarse", "mask"))
        image, references = (
            case["image"],
            [case["soft1"].astype(np.float64), case["soft2"].astype(np.float64)],
        )
    mask, softs = refine_mask(image, coarse, num_passes=len(references))
    figures = {}
    for number, (soft, reference) in enumerate(zip(softs, references, strict=True), start=1):
        error = np.abs(soft - reference) / np.ptp(reference)
        figures[f"soft{number}_close"] = float((error <= 0.01).mean())
        figures[f"soft{number}_max_error"] = float(error.max())
    figures["mask_iou"] = float((mask & expected).sum() / max((mask | expected).sum(), 1))
    return figures


def _unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)
