"""Merge what overlapping regions predict into one canvas. Pure tensor functions: no model, no I/O."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_window(size_hw: tuple[int, int], variance: float = 0.01) -> Tensor:
    """Weight of each latent cell of a region: highest at its centre, falling to the borders.

    ``w(i) = exp(-(i - (n - 1) / 2)^2 / n^2 / (2 v)) / sqrt(2 pi v)`` along an axis of ``n`` cells, and the
    product of both axes in 2-D. Worked out in float64; half precision is never an option, for a corner weighs
    2e-10 and the blend would divide zero by zero there.

    Args:
        size_hw: ``(h, w)`` of the region, in latent cells.
        variance: ``v``, in squared region sizes.

    Returns:
        ``float32[h, w]`` on the CPU, positive everywhere.

    Raises:
        ValueError: if a side is below 1 or ``variance`` is not positive.

    Source:
        Xie et al., "MosaicFusion", arXiv:2309.13042 (noise merging); the window is that of its program.
    """
    if min(size_hw) < 1:
        raise ValueError(f"size_hw must be at least (1, 1), got {tuple(size_hw)}")
    if not variance > 0:
        raise ValueError(f"variance must be positive, got {variance}")
    rows, columns = (_gaussian_axis(size, variance) for size in size_hw)
    return (rows[:, None] * columns[None, :]).to(torch.float32)


class RegionBlender:
    """The weights of one canvas, worked out once and used at every denoising step.

    Args:
        region_boxes: one xyxy box a region, in latent cells.
        canvas_hw: ``(H, W)`` of the canvas, in latent cells.
        device: where the predictions will be.
        window_variance: of the Gaussian windows, in squared region sizes.

    Raises:
        ValueError: if a cell of the canvas lies in no region.

    Example:
        >>> blend = RegionBlender([(0, 0, 2, 2), (2, 0, 4, 2)], canvas_hw=(2, 4))
        >>> blend([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 3.0)])[0, 0].tolist()
        [1.0, 1.0, 3.0, 3.0]
    """

    def __init__(
        self,
        region_boxes: Sequence[tuple[int, int, int, int]],
        canvas_hw: tuple[int, int],
        device: torch.device | str = "cpu",
        window_variance: float = 0.01,
    ):
        self._region_boxes = tuple(region_boxes)
        self._windows = [
            gaussian_window((y2 - y1, x2 - x1), window_variance).to(device) for x1, y1, x2, y2 in region_boxes
        ]
        self._total = torch.zeros(canvas_hw, device=device)  # [H, W]
        for window, (x1, y1, x2, y2) in zip(self._windows, self._region_boxes, strict=True):
            self._total[y1:y2, x1:x2] += window
        if not bool((self._total > 0).all()):
            row, column = (self._total <= 0).nonzero()[0].tolist()
            raise ValueError(
                f"every cell of the canvas must lie in a region, cell (row {row}, column {column}) does not"
            )

    def __call__(self, predictions: Sequence[Tensor]) -> Tensor:
        """Average ``[..., h, w]`` predictions, one a region, into ``float32[..., H, W]``.

        Args:
            predictions: in the order of the boxes.

        Returns:
            ``sum(w e) / sum(w)``.

        Raises:
            ValueError: if a prediction does not fill its box.
        """
        canvas = self._total.new_zeros((*predictions[0].shape[:-2], *self._total.shape))
        for index, (prediction, window) in enumerate(zip(predictions, self._windows, strict=True)):
            if prediction.shape[-2:] != window.shape:
                raise ValueError(
                    f"predictions[{index}] must fill its box of {tuple(window.shape)} cells, "
                    f"got shape {tuple(prediction.shape)}"
                )
            x1, y1, x2, y2 = self._region_boxes[index]
            canvas[..., y1:y2, x1:x2] += window * prediction.to(torch.float32)
        return canvas / self._total


def _gaussian_axis(size: int, variance: float) -> Tensor:
    """The 1-D window, ``float64[size]``."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.exp(-(offset**2) / size**2 / (2 * variance)) / math.sqrt(2 * math.pi * variance)
