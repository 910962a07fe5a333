"""MosaicFusion in the order of work of its published program, written from the paper to compare with.

One region at a time, with a guidance batch of 2; the attention of every region is worked out explicitly for
all tokens and kept for every step; heat maps by Pillow, Otsu by OpenCV, the plain scipy bilateral solver with
a grid for each pass. All of it in the precision of the model that is given. Only the request, its token
places, the Gaussian window and the component filter are mflight's.
"""

import copy
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from bilateral import refine_plainly
from PIL import Image

from mflight.diffusion.pipeline import LatentDiffusion
from mflight.diffusion.tokens import TokenRule, tokenize_plain, tokenize_prompt
from mflight.functional.blend import gaussian_window
from mflight.synthesis.filters import RegionFilter
from mflight.synthesis.request import MosaicRequest


@dataclass
class PublishedMosaic:
    """Latents ``float32[C, h, w]``, image ``uint8[H, W, 3]``, a mask a region, and seconds of each stage."""

    latents: torch.Tensor
    image: np.ndarray
    masks: list[np.ndarray]
    seconds: dict[str, float] = field(default_factory=dict)


class AttentionStore:
    """Explicit attention in a UNet's down and up blocks; all of the conditioned half is kept."""

    def __init__(self, unet):
        self.kept: list[torch.Tensor] = []  # [heads, cells, T] of each layer and evaluation
        self._unet = unet

    @contextmanager
    def installed(self):
        before = self._unet.attn_processors
        names = [n for n in before if n.startswith(("down_block", "up_block")) and "attn2" in n]
        self._unet.set_attn_processor(before | dict.fromkeys(names, self))
        try:
            yield self
        finally:
            self._unet.set_attn_processor(before)

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, temb=None):
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [2, heads, cells or T, d]
            for projected in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        probabilities = ((query * attn.scale) @ key.transpose(-1, -2)).softmax(dim=-1)
        self.kept.append(probabilities[1])
        output = (probabilities @ value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](output))


class PublishedOrder:
    """Draws and labels mosaics one region after the other.

    Args:
        pipeline: the model.
        num_inference_steps: of the scheduler.
        guidance_scale: weight of the prompt.
        token_rule: which tokens are attended.
        sigma_spatial_px: cell of the bilateral grid.
        region_filter: judges the masks.
    """

    def __init__(
        self,
        pipeline: LatentDiffusion,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        token_rule: TokenRule,
        sigma_spatial_px: float,
        region_filter: RegionFilter,
    ):
        self.pipeline = pipeline
        self.num_inference_steps = num_inference_steps
        self._guidance_scale = guidance_scale
        self._token_rule = token_rule
        self._sigma_spatial_px = sigma_spatial_px
        self._region_filter = region_filter
        self._seconds: dict[str, float] = {}

    @torch.inference_mode()
    def draw(self, request: MosaicRequest) -> PublishedMosaic:
        self._seconds = {}
        with self._stage("text"):
            prompts = [self._encode(prompt) for prompt in request.prompts]
        with self._stage("denoise"):
            latents, stores = self._denoise(request, [embeds for embeds, _ in prompts])
        with self._stage("decode"):
            scaled = latents / self.pipeline.vae.config.scaling_factor
            pixels = (self.pipeline.vae.decode(scaled).sample[0] / 2 + 0.5).clamp(0, 1) * 255
            image = pixels.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        boxes = request.layout.region_boxes
        with self._stage("label"):
            coarse = [
                self._coarse_mask(store, tokens, (y2 - y1, x2 - x1))
                for store, (_, tokens), (x1, y1, x2, y2) in zip(stores, prompts, boxes, strict=True)
            ]
        with self._stage("solver"):
            masks = [
                refine_plainly(image[y1:y2, x1:x2], mask, self._sigma_spatial_px)[0]
                for mask, (x1, y1, x2, y2) in zip(coarse, boxes, strict=True)
            ]
        with self._stage("filter"):
            self._region_filter.apply(masks, request.layout)
        return PublishedMosaic(latents[0], image, masks, self._seconds)

    @contextmanager
    def _stage(self, name: str):
        start_s = time.perf_counter()
        yield
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize(self.pipeline.device)
        self._seconds[name] = time.perf_counter() - start_s

    def _encode(self, prompt) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Both embeddings ``[2, T, D]``, the empty prompt's first, and the attended places."""
        text, length = self.pipeline.text, self.pipeline.text.max_prompt_tokens
        tokenizer = text.tokenizers[0]
        tokenized = tokenize_prompt(tokenizer, prompt, max_length=length, rule=self._token_rule)
        ids = [tokenize_plain(tokenizer, "", max_length=length), tokenized.input_ids]
        embeds = text.text_encoders[0](torch.tensor(ids, device=self.pipeline.device))[0]
        return embeds, tokenized.attended_tokens

    def _denoise(self, request: MosaicRequest, embeds: list[torch.Tensor]):
        unet, device = self.pipeline.unet, self.pipeline.device
        stride_px = self.pipeline.latent_stride_px
        height, width = (size // stride_px for size in request.layout.canvas_hw)
        boxes = request.layout.latent_boxes(stride_px)
        windows = [gaussian_window((y2 - y1, x2 - x1)).to(device) for x1, y1, x2, y2 in boxes]
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(self.num_inference_steps, device=device)
        draws = torch.Generator(device).manual_seed(request.noise_seed)
        shape = (1, self.pipeline.latent_channels, height, width)
        latents = torch.randn(shape, generator=draws, device=device) * scheduler.init_noise_sigma
        stores = [AttentionStore(unet) for _ in boxes]
        for timestep in scheduler.timesteps:
            inputs = scheduler.scale_model_input(latents, timestep)
            noise, total = torch.zeros_like(latents), torch.zeros_like(latents)
            for (x1, y1, x2, y2), window, text, store in zip(boxes, windows, embeds, stores, strict=True):
                crop = torch.cat([inputs[..., y1:y2, x1:x2]] * 2)
                with store.installed():
                    negative, positive = unet(crop, timestep, text).sample.chunk(2)
                guided = negative + self._guidance_scale * (positive - negative)
                noise[..., y1:y2, x1:x2] += window * guided
                total[..., y1:y2, x1:x2] += window
            latents = scheduler.step(noise / total, timestep, latents).prev_sample
        return latents, stores

    def _coarse_mask(
        self, store: AttentionStore, tokens: tuple[int, ...], size_hw: tuple[int, int]
    ) -> np.ndarray:
        """Mean over steps, layers and heads by resolution, in 8-bit steps, cut at Otsu's level."""
        stride_px = self.pipeline.latent_stride_px
        levels = []
        latent_hw = tuple(size // stride_px for size in size_hw)
        for level in range(3):
            grid_hw = tuple(-(-size // 2**level) for size in latent_hw)
            kept = [p for p in store.kept if p.shape[1] == grid_hw[0] * grid_hw[1]]
            if kept:
                words = torch.cat(kept).mean(dim=0)[:, list(tokens)].mean(dim=1)  # [cells]
                image = (words / words.max() * 255).to(torch.uint8).view(grid_hw).cpu().numpy()
                resized = Image.fromarray(image).resize(size_hw[::-1], Image.Resampling.BICUBIC)
                levels.append(np.asarray(resized) / 255)
        heat_map = np.mean(levels, axis=0)
        heat_map = (heat_map / heat_map.max() * 255 + 1e-9).astype(np.uint8)  # 41.999... means 42
        level, _ = cv2.threshold(heat_map, 0, 255, cv2.THRESH_OTSU)
        return heat_map > level


def unet_call(pipeline: LatentDiffusion, latent_hw: tuple[int, int]) -> Callable[[], torch.Tensor]:
    """A UNet call of one region with both guidance halves, on made inputs."""
    device, dtype = pipeline.device, pipeline.dtype
    sample = torch.randn(2, pipeline.latent_channels, *latent_hw, device=device, dtype=dtype)
    width = pipeline.unet.config.cross_attention_dim
    text = torch.randn(2, pipeline.text.max_prompt_tokens, width, device=device, dtype=dtype)
    return lambda: pipeline.unet(sample, 500, text, return_dict=False)[0]
