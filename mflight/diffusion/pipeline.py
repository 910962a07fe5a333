"""Load a Stable Diffusion checkpoint with stock diffusers."""

import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import BeforeValidator, ConfigDict, Field, validate_call
from torch import Tensor
from transformers.utils import logging as transformers_logging

from mflight.diffusion.checkpoint import Checkpoint, build_scheduler, find_checkpoint
from mflight.diffusion.compilation import compile_blocks
from mflight.diffusion.conditioning import TextConditioner
from mflight.diffusion.parts import choose_dtype

logger = logging.getLogger(__name__)


class NotFiniteError(ValueError):
    """A model has given infinities or what is not a number: there is nothing to draw."""


@dataclass
class LatentDiffusion:
    """The parts of a text-to-image latent diffusion model.

    Attributes:
        checkpoint: folder or hub id, as it was asked for.
        files: where its files lie, and of which family it is.
        text: text towers; tell the UNet what to draw.
        unet: predicts noise (or v) of latents ``[B, C, h, w]``.
        vae: its decoder turns latents into images.
        scheduler: never stepped itself; each denoising run works on a copy.
    """

    checkpoint: str
    files: Checkpoint
    text: TextConditioner
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: SchedulerMixin

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights; latents, guidance and blending are float32 whatever it is."""
        return self.unet.dtype

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.unet.config.in_channels

    @property
    def latent_stride_px(self) -> int:
        """Pixels per latent cell: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the names and bytes of the weights files; seconds of reading, once, for a large model."""
        digest = hashlib.sha256()
        for name, part in self.files.parts.items():
            for path in part.weight_files:
                digest.update(f"{name}/{path.name}".encode())
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def is_guided(self, guidance_scale: float) -> bool:
        """Whether a guidance scale wants a second half of the batch, as in stock diffusers.

        At or below 1 guidance is off; a UNet that was distilled with guidance is told the scale instead.
        """
        return guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None

    def timestep_cond(self, guidance_scales: Sequence[float]) -> Tensor | None:
        """What a UNet that was distilled with guidance is told of it (latent consistency models).

        Args:
            guidance_scales: one a sample.

        Returns:
            ``[N, D]`` in the model's precision; ``None`` for any other UNet.
        """
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        excess = torch.tensor(guidance_scales) - 1
        embedding = StableDiffusionPipeline.get_guidance_scale_embedding(None, excess, embedding_dim=width)
        return embedding.to(self.device, self.dtype)

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents into 8-bit images, one at a time, so that memory does not grow with the batch.

        A VAE that overflows in half precision decodes that canvas again in float32.

        Args:
            latents: ``float32[B, C, h, w]``.

        Returns:
            ``uint8[B, H, W, 3]`` on the CPU; values are truncated, or rounded for SDXL, as published.

        Raises:
            NotFiniteError: if a pixel of an image is not a finite number in float32 either.
        """
        images = []
        for canvas in self._unscaled(latents).split(1):
            decoded = self.vae.decode(canvas.to(self.vae.dtype)).sample
            if not torch.isfinite(decoded).all() and self.vae.dtype != torch.float32:
                decoded = self._full_vae.decode(canvas).sample
            if not torch.isfinite(decoded).all():
                raise NotFiniteError(
                    "the VAE must decode latents to finite pixels, in float32 it gives others"
                )
            pixels = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
            pixels = pixels.round() if self.files.family.rounds_pixels else pixels
            images.append(pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu())
        return torch.cat(images)

    @cached_property
    def _full_vae(self) -> AutoencoderKL:
        """The VAE in float32, made when it is first needed."""
        logger.warning("the VAE overflows in %s: such canvases are decoded in float32", self.vae.dtype)
        return copy.deepcopy(self.vae).float()

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the VAE has them: the UNet sees them normalised."""
        config = self.vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (
                torch.tensor(values, device=latents.device)[:, None, None]  # [C, 1, 1]
                for values in (config.latents_mean, config.latents_std)
            )
            return latents * std / config.scaling_factor + mean
        return latents / config.scaling_factor + (config.shift_factor or 0.0)


def _to_device(value: Any) -> torch.device:
    """The device that a text names; whether this machine has it is seen when weights go there."""
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one of torch such as cpu or cuda:0, got {value!r}") from error


@validate_call(config=ConfigDict(arbitrary_types_allowed=True))
def load_pipeline(
    checkpoint: Annotated[str, Field(min_length=1)],
    dtype: torch.dtype | str = torch.float32,
    device: Annotated[torch.device | str, BeforeValidator(_to_device)] = "cpu",
    scheduler: str | None = None,
    scheduler_settings: dict[str, Any] | None = None,
    channels_last: bool = False,
    compile_backend: str | None = None,
    vae_tiling: bool = False,
) -> LatentDiffusion:
    """Load a checkpoint of the Stable Diffusion 1.x, 2.x or XL family.

    A folder that does not exist, or is not in diffusers' format, is a ``FileNotFoundError``. A checkpoint
    that the hub does not have, that is of another family, that lacks weights or whose parts do not fit each
    other, a ``dtype`` that is not of floating point, and a device, a scheduler, a setting of it or a compiler
    that does not exist, are a ``ValueError``. All but weights that are not finite is seen before any is read.

    Args:
        checkpoint: a folder in diffusers' format, or a hub id such as ``CompVis/stable-diffusion-v1-4``.
        dtype: precision of the weights, or its name (``"bfloat16"``); ``"auto"`` is bfloat16 where the device
            has units for it, see ``mflight.diffusion.parts``. SDXL's VAE stays in float32 where this is
            float16 and the checkpoint says ``force_upcast``: it would overflow.
        device: where the model runs; ``"meta"`` looks at the checkpoint and builds it without weights.
        scheduler: class name of a diffusers scheduler, built from the configuration of the checkpoint's own;
            ``None`` keeps that one.
        scheduler_settings: settings of the scheduler that differ from the checkpoint's.
        channels_last: keep convolution weights, and so what flows between them, in NHWC order, as tensor
            cores want it.
        compile_backend: what compiles the UNet's blocks (``"inductor"``); ``None`` compiles nothing. See
            ``mflight.diffusion.compilation``.
        vae_tiling: decode a canvas larger than the VAE was trained on in overlapping tiles: bounded memory,
            slightly different pixels.

    Returns:
        The model, in evaluation mode and without gradients.
    """
    weights_dtype = choose_dtype(dtype, device)
    files = find_checkpoint(checkpoint)
    built_scheduler = build_scheduler(files, scheduler, scheduler_settings)
    with _no_loading_bars():
        models = {name: part.skeleton() for name, part in files.parts.items()}
        text = _build_text(files, models)
        _check_fit(files, text, models["unet"].config, models["vae"].config)
        if torch.device(device).type != "meta":
            models = {name: part.load(weights_dtype) for name, part in files.parts.items()}
            text = _build_text(files, models, device)
    unet, vae = models["unet"], models["vae"]
    if files.family.obeys_force_upcast and vae.config.force_upcast and weights_dtype == torch.float16:
        vae = files.parts["vae"].load(torch.float32)
    for model in (unet, vae):
        model.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    if vae_tiling:
        vae.enable_tiling()
    if compile_backend is not None:
        compile_blocks(unet, compile_backend)
    return LatentDiffusion(
        checkpoint=checkpoint, files=files, text=text, unet=unet, vae=vae, scheduler=built_scheduler
    )


def _build_text(
    files: Checkpoint, models: Mapping[str, torch.nn.Module], device: torch.device | str = "meta"
) -> TextConditioner:
    """The text towers with their tokenizers."""
    conditioner = files.family.conditioner
    towers = [models[name].to(device) for name in conditioner.TOWERS]
    return conditioner.from_towers(files.folder, files.index, towers)


def _check_fit(files: Checkpoint, text: TextConditioner, unet: Any, vae: Any) -> None:
    """Refuse parts, given by their configs, that were not made for each other or for text alone."""
    rules = {
        "the UNet's in_channels must be the VAE's latent_channels (an inpainting UNet has more)": (
            vae.latent_channels,
            unet.in_channels,
        ),
        "the UNet's out_channels must be the VAE's latent_channels": (vae.latent_channels, unet.out_channels),
        "the UNet's cross_attention_dim must be the width of the text encoder": (
            text.width,
            unet.cross_attention_dim,
        ),
        "the UNet's addition_embed_type must be its family's": (
            files.family.addition_embed_type,
            unet.addition_embed_type,
        ),
        "the UNet's num_class_embeds must be unset (an upscaler has them)": (None, unet.num_class_embeds),
        "the UNet's encoder_hid_dim_type must be unset": (None, unet.encoder_hid_dim_type),
    }
    for rule, (wanted, got) in rules.items():
        if got != wanted:
            raise ValueError(f"{rule}, {wanted}, got {got} in {str(files.folder)!r}")


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each model."""
    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()
