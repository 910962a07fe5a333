"""The latent space of the mini checkpoint, and the KL autoencoder that learns its codes and draws from them.

The codes are partly whitened principal components of 4 x 4 px patches. A latent space that is known
beforehand lets encoder, decoder and UNet be trained at the same time, and a linear one is kind to a small
diffusion model.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mflight.minilvis.training_scenes import draw_captioned_scene

logger = logging.getLogger(__name__)

STRIDE_PX = 4
NUM_CHANNELS = 8
_WHITENING = 0.5
"""A component is divided by this power of its standard deviation: 0 keeps the spread, 1 makes all equal."""

_NUM_SCENES = 400
_SCENE_PX, _CROP_PX = 64, 32
_LATENT_NOISE = 0.08
"""Standard deviation of the noise on the codes while the decoder learns: generated ones are never exact."""

_LOG_VARIANCE = -5.0


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


def build_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder: 16, 32, 64 channels, no attention, latents of unit variance."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=NUM_CHANNELS,
        norm_num_groups=4,
        sample_size=_SCENE_PX,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def crop_batches(batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield endless batches ``float32[B, 3, 32, 32]`` by the seed: four crops of each drawn scene."""
    draws = np.random.default_rng(seed)
    while True:
        crops = []
        while len(crops) < batch_size:
            image = draw_captioned_scene((_SCENE_PX, _SCENE_PX), draws)[0].image
            for y, x in draws.integers(0, _SCENE_PX - _CROP_PX + 1, (4, 2)):
                crops.append(image[y : y + _CROP_PX, x : x + _CROP_PX])
        yield to_unit(np.stack(crops[:batch_size]))


def train_decoder(
    autoencoder: AutoencoderKL,
    *,
    num_steps: int,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> None:
    """Teach the decoder to draw crops from their codes, by L1 on pixels and on their differences."""
    generator = torch.Generator().manual_seed(seed)

    def loss_of(images: Tensor) -> Tensor:
        codes = encode_patches(images)
        codes = codes + _LATENT_NOISE * torch.randn(codes.shape, generator=generator)
        rebuilt = autoencoder.decode(codes).sample
        return F.l1_loss(rebuilt, images) + 0.5 * _edge_loss(rebuilt, images)

    parameters = [*autoencoder.decoder.parameters(), *autoencoder.post_quant_conv.parameters()]
    _minimise(
        loss_of, parameters, name="decoder",
        num_steps=num_steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed,
    )  # fmt: skip


def train_encoder(
    autoencoder: AutoencoderKL,
    *,
    num_steps: int,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> None:
    """Teach the encoder to give the codes as its mean, with one small variance."""

    def loss_of(images: Tensor) -> Tensor:
        mean, log_variance = autoencoder.quant_conv(autoencoder.encoder(images)).chunk(2, dim=1)
        return F.mse_loss(mean, encode_patches(images)) + 0.01 * F.mse_loss(
            log_variance, torch.full_like(log_variance, _LOG_VARIANCE)
        )

    parameters = [*autoencoder.encoder.parameters(), *autoencoder.quant_conv.parameters()]
    _minimise(
        loss_of, parameters, name="encoder",
        num_steps=num_steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed,
    )  # fmt: skip


def _minimise(
    loss_of: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    *,
    name: str,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train ``parameters`` on endless crops with AdamW and a one-cycle rate."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=num_steps, pct_start=0.1
    )
    batches = crop_batches(batch_size, seed)
    smooth = None
    progress = tqdm(range(num_steps), desc=name, mininterval=10)
    for _ in progress:
        loss = loss_of(next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        progress.set_postfix(loss=f"{smooth:.4f}", refresh=False)


def _edge_loss(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Compare horizontal and vertical pixel differences, so that edges stay sharp."""
    across = F.l1_loss(rebuilt[..., 1:] - rebuilt[..., :-1], images[..., 1:] - images[..., :-1])
    down = F.l1_loss(rebuilt[..., 1:, :] - rebuilt[..., :-1, :], images[..., 1:, :] - images[..., :-1, :])
    return across + down


@torch.no_grad()
def measure_psnr(autoencoder: AutoencoderKL, *, seed: int = 1) -> dict[str, float]:
    """Return the PSNR in dB on 512 unseen crops, drawn from their codes and from the encoder."""
    images = next(crop_batches(512, seed))
    latents = {"codes": encode_patches(images), "encoder": autoencoder.encode(images).latent_dist.mode()}
    return {name: _psnr_db(autoencoder.decode(codes).sample, images) for name, codes in latents.items()}


def _psnr_db(rebuilt: Tensor, images: Tensor) -> float:
    return -10.0 * torch.log10((rebuilt.clamp(-1, 1) - images).pow(2).mean() / 4.0).item()
