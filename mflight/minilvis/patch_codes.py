"""The latent space of the mini checkpoint: partly whitened principal components of 4 x 4 px patches.

A latent space that is known beforehand lets encoder, decoder and UNet be trained at the same time, and a
linear one is kind to a small diffusion model. The encoder learns to reproduce these codes, the decoder
learns to draw sharp images from them.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mflight.minilvis.training_scenes import draw_captioned_scene

STRIDE_PX = 4
NUM_CHANNELS = 8
_WHITENING = 0.5
"""A component is divided by this power of its standard deviation: 0 keeps the spread, 1 makes all equal."""

_NUM_SCENES = 400


def to_unit(images: np.ndarray | Tensor) -> Tensor:
    """Turn ``uint8[B, H, W, 3]`` into ``float32[B, 3, H, W]`` in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@cache
def _basis() -> tuple[Tensor, Tensor]:
    """Return the mean patch ``float32[48]`` and the scaled components ``float32[48, NUM_CHANNELS]``."""
    draws = np.random.default_rng(20)
    images = to_unit(np.stack([draw_captioned_scene((64, 64), draws)[0].image for _ in range(_NUM_SCENES)]))
    patches = _patches(images).flatten(0, 2).double()  # [P, 48]
    mean = patches.mean(dim=0)
    centered = patches - mean
    variance, components = torch.linalg.eigh(centered.T @ centered / len(patches))
    variance, components = variance.flip(0)[:NUM_CHANNELS], components.flip(1)[:, :NUM_CHANNELS]
    sign = torch.sign(
        components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    )  # fixes the free sign
    scaled = components * sign / variance.sqrt().pow(_WHITENING)
    unit = scaled / (centered @ scaled).std()
    return mean.float(), unit.float()


def _patches(images: Tensor) -> Tensor:
    """Cut ``[B, 3, H, W]`` into ``[B, H/4, W/4, 48]``."""
    return F.pixel_unshuffle(images, STRIDE_PX).permute(0, 2, 3, 1)


def encode_patches(images: Tensor) -> Tensor:
    """Turn images ``float32[B, 3, H, W]`` into codes of unit variance, ``float32[B, 8, H/4, W/4]``."""
    mean, components = _basis()
    return ((_patches(images) - mean) @ components).permute(0, 3, 1, 2)
