"""Cross-attention of a region's words to a heat map and a mask, in 8-bit steps. Pure tensor functions.

The published program passes every map through 8-bit images, so the rounding of those is part of the method.
Here it is done by exact integer arithmetic, batched over regions: a CPU and a GPU give the same bits.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

_FIXED_POINT_BITS = 22  # Pillow keeps its filter weights as integers with this many binary places


def attention_to_heat_map(attention_maps: Sequence[Tensor], region_hw: tuple[int, int]) -> Tensor:
    """Return ``uint8[H, W]``: the heat map of one region; see `attention_to_heat_maps`.

    Args:
        attention_maps: ``S`` tensors ``float[h, w]``, one per UNet resolution.
        region_hw: ``(H, W)`` of the region in px.

    Returns:
        ``uint8[H, W]`` with a peak of 255; zeros where there is no attention at all.

    Example:
        >>> attention_to_heat_map([torch.tensor([[0.8, 0.0], [0.4, 0.0]])], region_hw=(2, 2)).tolist()
        [[255, 0], [127, 0]]
    """
    return attention_to_heat_maps([maps[None] for maps in attention_maps], region_hw)[0]


def attention_to_heat_maps(attention_maps: Sequence[Tensor], region_hw: tuple[int, int]) -> Tensor:
    """Turn the word attention of N regions of one size into one heat map each.

    Every map is scaled to a peak of 255, cut to 8 bits and resized to the region by 8-bit bicubic
    interpolation; the mean over the resolutions is scaled and cut once more. Coarse maps tell where
    the object is, fine maps where it ends.

    Shapes: ``N`` regions, ``S`` UNet resolutions, ``(h, w)`` latent grid, ``(H, W)`` region.

    Args:
        attention_maps: ``S`` tensors ``float[N, h, w]``; ``h`` and ``w`` may differ between them. Each value
            is the attention probability of the word, averaged over evaluations and heads, in ``[0, 1]``.
        region_hw: ``(H, W)`` of the regions in px.

    Returns:
        ``uint8[N, H, W]`` on the device of the input, each with a peak of 255. A region without any attention
        gives zeros.

    Raises:
        ValueError: if no map is given, if a map is empty or not 3-D, or if the resolutions disagree on ``N``.

    Source:
        Xie et al., "MosaicFusion", arXiv:2309.13042, section 3.3; the 8-bit steps are those of its program.
    """
    if not attention_maps:
        raise ValueError("attention_maps is empty, expected one float[N, h, w] per UNet resolution")
    _check_attention_maps(attention_maps)
    total = torch.stack(
        [resize_bicubic_8bit(_scale_to_8bit(maps.float()), region_hw).int() for maps in attention_maps]
    ).sum(dim=0)  # int64[N, H, W], S times the mean
    peak = total.amax(dim=(1, 2), keepdim=True)
    return torch.div(total * 255, peak.clamp_min(1), rounding_mode="floor").to(torch.uint8)


def heat_map_to_mask(heat_maps: Tensor, threshold: Literal["otsu"] | float = "otsu") -> Tensor:
    """Cut heat maps into object and background.

    Args:
        heat_maps: ``uint8[..., H, W]``.
        threshold: ``"otsu"`` chooses a level for each map; a number in (0, 1) is a share of the full range.

    Returns:
        ``bool[..., H, W]``: the pixels above the level. A map of zeros gives an empty mask.

    Raises:
        ValueError: if a number outside (0, 1) or another word is given as threshold.

    Example:
        >>> heat_map_to_mask(torch.tensor([[0, 10, 128, 255]], dtype=torch.uint8), threshold=0.5).tolist()
        [[False, False, True, True]]
    """
    if threshold == "otsu":
        return heat_maps > otsu_threshold(heat_maps)[..., None, None]
    if isinstance(threshold, str) or not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold must be 'otsu' or lie in (0, 1), got {threshold!r}")
    return heat_maps > threshold * 255


def otsu_threshold(heat_maps: Tensor) -> Tensor:
    """Choose for each map the level that parts it into the two most distinct classes.

    Of the 256 levels t, with class 0 = values <= t, it is the first that maximises the variance between the
    classes. A map of one value has no such level and gives 0.

    Args:
        heat_maps: ``uint8[..., H, W]``.

    Returns:
        ``int64[...]`` in 0..255, on the device of the input.

    Raises:
        ValueError: if the maps are not 8-bit images.

    Source:
        Otsu, "A threshold selection method from gray-level histograms", IEEE TSMC 1979.

    Example:
        >>> otsu_threshold(torch.tensor([[10, 10, 200, 210]], dtype=torch.uint8)).item()
        10
    """
    if heat_maps.dtype != torch.uint8 or heat_maps.ndim < 2:
        raise ValueError(f"heat maps must be uint8[..., H, W], got {heat_maps.dtype}{list(heat_maps.shape)}")
    values = heat_maps.flatten(start_dim=-2).long()  # [..., H * W]
    histogram = values.new_zeros((*values.shape[:-1], 256)).scatter_add_(-1, values, torch.ones_like(values))
    count = histogram.cumsum(dim=-1)  # pixels of class 0, for each t
    moment = (histogram * torch.arange(256, device=values.device)).cumsum(dim=-1)
    num_pixels, total = count[..., -1:], moment[..., -1:]
    between = (total * count - num_pixels * moment).double() ** 2 / (count * (num_pixels - count)).clamp_min(
        1
    )
    return between.argmax(dim=-1)


def resize_bicubic_8bit(images: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize 8-bit gray images exactly as Pillow's ``BICUBIC`` does: same kernel, rounding and clipping.

    Pillow resizes along x, rounds to 8 bits, then along y, with weights of 22 binary places. The sums of
    integers below 2**53 are exact in float64, so two matrix products give the same bits on any device.

    Args:
        images: ``uint8[..., h, w]``.
        size_hw: ``(H, W)`` wanted, in px.

    Returns:
        ``uint8[..., H, W]`` on the device of the input.

    Source:
        Pillow, ``src/libImaging/Resample.c`` (bicubic with a = -0.5, widened when it shrinks).
    """
    height, width = size_hw
    columns = _resize_weights(images.shape[-1], width).to(images.device)  # [W, w]
    rows = _resize_weights(images.shape[-2], height).to(images.device)  # [H, h]
    resized = _round_to_8bit(images.double() @ columns.T)  # [..., h, W]
    return _round_to_8bit(rows @ resized).to(torch.uint8)  # [..., H, W]


def _scale_to_8bit(maps: Tensor) -> Tensor:
    """Scale each map of ``float[N, h, w]`` to a peak of 255 and cut to 8 bits; a map of zeros stays zero."""
    peak = maps.amax(dim=(1, 2), keepdim=True)
    return (maps / peak.clamp_min(torch.finfo(maps.dtype).tiny) * 255).to(torch.uint8)


def _round_to_8bit(sums: Tensor) -> Tensor:
    return torch.floor(sums * 2.0**-_FIXED_POINT_BITS + 0.5).clamp_(0, 255)


@lru_cache(maxsize=256)
def _resize_weights(num_in: int, num_out: int) -> Tensor:
    """Return ``float64[num_out, num_in]``: Pillow's bicubic weights in units of 2**-22, whole numbers."""
    scale = num_in / num_out
    stretch = max(scale, 1.0)
    center = (np.arange(num_out) + 0.5)[:, None] * scale
    first = np.maximum((center - 2 * stretch + 0.5).astype(int), 0)
    last = np.minimum((center + 2 * stretch + 0.5).astype(int), num_in)
    pixel = np.arange(num_in)[None, :]
    weights = _bicubic((pixel - center + 0.5) / stretch) * ((pixel >= first) & (pixel < last))
    weights = weights / weights.sum(axis=1, keepdims=True) * 2.0**_FIXED_POINT_BITS
    return torch.from_numpy(np.trunc(weights + np.copysign(0.5, weights)))


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Evaluate Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _check_attention_maps(attention_maps: Sequence[Tensor]) -> None:
    for index, maps in enumerate(attention_maps):
        if maps.ndim != 3 or maps.numel() == 0:
            shape = tuple(maps.shape)
            raise ValueError(f"attention_maps[{index}] must be a non-empty [N, h, w], got shape {shape}")
    counts = {len(maps) for maps in attention_maps}
    if len(counts) > 1:
        raise ValueError(f"all resolutions must hold the same number of regions, got {sorted(counts)}")
