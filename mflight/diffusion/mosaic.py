"""One diffusion over each canvas: its regions predict noise by their own prompts, blended at every step."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mflight.diffusion.attention import AttentionAccumulator, AttentionRecorder, AttentionSettings
from mflight.diffusion.conditioning import TextCondition
from mflight.diffusion.pipeline import LatentDiffusion
from mflight.diffusion.tokens import PromptText
from mflight.functional.blend import RegionBlender
from mflight.functional.layout import Box, MosaicLayout


@dataclass(frozen=True)
class Canvas:
    """What is drawn on one canvas.

    Attributes:
        layout: canvas and regions, in pixels.
        prompts: one a region.
        negative_prompts: one a region; guidance leads away from them.
        guidance_scales: one a region; at or below 1 there is no guidance.
        noise_seed: seed of the initial noise, and of the scheduler's if it draws any.
    """

    layout: MosaicLayout
    prompts: tuple[PromptText, ...]
    negative_prompts: tuple[str, ...]
    guidance_scales: tuple[float, ...]
    noise_seed: int


@dataclass(frozen=True)
class DenoisedCanvas:
    """One canvas after the last step.

    Attributes:
        latents: ``float32[C, h, w]``.
        attention_maps: ``attention_maps[r]`` holds the ``S`` maps ``float32[h_s, w_s]`` of region ``r``,
            finest first: probabilities in ``[0, 1]``.
        attended_tokens: of each region, the places of its prompt's tokens that were attended.
    """

    latents: Tensor
    attention_maps: tuple[tuple[Tensor, ...], ...]
    attended_tokens: tuple[tuple[int, ...], ...]


@torch.inference_mode()
def denoise_mosaic(
    pipeline: LatentDiffusion,
    canvases: Sequence[Canvas],
    *,
    num_inference_steps: int,
    attention: AttentionSettings | None = None,
    max_batch: int = 32,
    window_variance: float = 0.01,
) -> list[DenoisedCanvas]:
    """Denoise canvases together, and keep the attention to the class named in each region.

    At each timestep all regions of equal latent shape, of all canvases, go through the UNet together with
    both guidance halves. Their predictions are averaged on each canvas under Gaussian windows, and the
    scheduler takes one step on the whole canvases. What comes out does not depend on the batch. A region
    edge off the latent grid, a name that is lost in its prompt, and levels without cross-attention, are a
    ``ValueError``.

    Args:
        pipeline: the model.
        canvases: what to draw; sizes and layouts may differ.
        num_inference_steps: steps of the scheduler; PNDM evaluates the UNet once more.
        attention: which attention is kept; ``None`` for the published choice.
        max_batch: most samples in one UNet call, both guidance halves counted.
        window_variance: of the Gaussian windows that blend the regions, in squared region sizes.

    Returns:
        One result a canvas.

    Raises:
        ValueError: if none of the scheduler's evaluations counts.

    Source:
        Xie et al., "MosaicFusion", arXiv:2309.13042, section 3.2.
    """
    attention = attention or AttentionSettings()
    recorder = AttentionRecorder(pipeline.unet, attention.blocks, attention.levels)
    regions = [
        r for index, canvas in enumerate(canvases) for r in _encode(pipeline, index, canvas, attention)
    ]
    groups = _group_canvases(pipeline, canvases, num_inference_steps, window_variance)
    timesteps = groups[0].scheduler.timesteps if groups else ()
    if groups and attention.first_evaluation >= len(timesteps):
        raise ValueError(
            f"first_evaluation must be below the scheduler's {len(timesteps)} evaluations, "
            f"got {attention.first_evaluation}"
        )
    batches = _batch_regions(pipeline, regions, attention, max_batch)
    with recorder.installed():
        for evaluation, timestep in enumerate(timesteps):
            inputs = {canvas: sample for group in groups for canvas, sample in group.model_inputs(timestep)}
            for batch in batches:
                with recorder.reporting_to(batch.accumulator if attention.counts(evaluation) else None):
                    batch.predict(pipeline, inputs, timestep)
            for group in groups:
                group.step(regions, timestep)
    for batch in batches:
        batch.hand_out_maps()
    latents = {index: sample for group in groups for index, sample in group.results()}
    return [_collect(latents[index], regions, index) for index in range(len(canvases))]


@dataclass
class _Region:
    """One region on its way through the denoising."""

    canvas: int
    latent_box: Box
    condition: TextCondition
    negative_condition: TextCondition
    guidance_scale: float
    attended_tokens: tuple[int, ...]
    prediction: Tensor | None = None  # [C, h, w] of the current step
    attention_maps: tuple[Tensor, ...] = ()

    @property
    def latent_hw(self) -> tuple[int, int]:
        x1, y1, x2, y2 = self.latent_box
        return y2 - y1, x2 - x1


def _encode(
    pipeline: LatentDiffusion, index: int, canvas: Canvas, attention: AttentionSettings
) -> list[_Region]:
    """The regions of a canvas with their embeddings and attended tokens."""
    regions = []
    boxes = canvas.layout.latent_boxes(pipeline.latent_stride_px)
    for box, prompt, negative, guidance_scale in zip(
        boxes, canvas.prompts, canvas.negative_prompts, canvas.guidance_scales, strict=True
    ):
        condition, attended_tokens = pipeline.text.encode_prompt(prompt, attention.token_rule)
        regions.append(
            _Region(
                canvas=index,
                latent_box=box,
                condition=condition,
                negative_condition=pipeline.text.encode_negative(negative),
                guidance_scale=guidance_scale,
                attended_tokens=attended_tokens,
            )
        )
    return regions


class _RegionBatch:
    """Regions of equal latent shape that share one UNet call at every step."""

    def __init__(self, pipeline: LatentDiffusion, regions: Sequence[_Region], levels: Sequence[int]):
        self.regions = regions
        scales = [region.guidance_scale for region in regions]
        self._guided = any(pipeline.is_guided(scale) for scale in scales)
        positive = [region.condition for region in regions]
        negative = [region.negative_condition for region in regions] if self._guided else []
        conditions = negative + positive  # 2N, the conditioned half last
        self._embeds = torch.stack([condition.prompt_embeds for condition in conditions])  # [2N, T, D]
        region_hw = tuple(size * pipeline.latent_stride_px for size in regions[0].latent_hw)
        self._added_cond_kwargs = pipeline.text.added_cond_kwargs(conditions, region_hw)
        self._timestep_cond = pipeline.timestep_cond(scales)  # of UNets that take no second half
        self._scales = torch.tensor(scales, device=self._embeds.device)[:, None, None, None]  # [N, 1, 1, 1]
        weights = torch.zeros(len(regions), self._embeds.shape[1])  # [N, T]
        for row, region in zip(weights, regions, strict=True):
            row[list(region.attended_tokens)] = 1 / len(region.attended_tokens)
        self.accumulator = AttentionAccumulator(regions[0].latent_hw, weights.to(self._embeds.device), levels)

    def predict(self, pipeline: LatentDiffusion, inputs: dict[int, Tensor], timestep: Tensor) -> None:
        """Write each region's guided prediction, ``float32[C, h, w]``, for its crop of its canvas."""
        crops = []
        for region in self.regions:
            x1, y1, x2, y2 = region.latent_box
            crops.append(inputs[region.canvas][:, y1:y2, x1:x2])
        samples = torch.stack(crops * 2 if self._guided else crops).to(pipeline.dtype)  # [2N, C, h, w]
        output = pipeline.unet(
            samples,
            timestep,
            self._embeds,
            timestep_cond=self._timestep_cond,
            added_cond_kwargs=self._added_cond_kwargs,
            return_dict=False,
        )[0].float()
        if self._guided:
            negative, positive = output.chunk(2)
            output = negative + self._scales * (positive - negative)
        for region, prediction in zip(self.regions, output, strict=True):
            region.prediction = prediction

    def hand_out_maps(self) -> None:
        """Give each region the mean of the attention that was kept for it."""
        for region, maps in zip(self.regions, self.accumulator.attention_maps(), strict=True):
            region.attention_maps = tuple(maps)


def _batch_regions(
    pipeline: LatentDiffusion, regions: Sequence[_Region], attention: AttentionSettings, max_batch: int
) -> list[_RegionBatch]:
    """Batches of equal latent shape, guided and unguided regions apart, of at most ``max_batch`` samples."""
    alike = defaultdict(list)
    for region in regions:
        alike[region.latent_hw, pipeline.is_guided(region.guidance_scale)].append(region)
    batches = []
    for (_, guided), members in alike.items():
        size = max(1, max_batch // 2 if guided else max_batch)
        batches += [
            _RegionBatch(pipeline, members[start : start + size], attention.levels)
            for start in range(0, len(members), size)
        ]
    return batches


@dataclass
class _CanvasGroup:
    """Canvases of equal size that share a scheduler, which may keep state of their latents."""

    members: list[int]
    latents: Tensor  # float32 [B, C, h, w]
    scheduler: Any
    blenders: list[RegionBlender]
    generators: list[torch.Generator]
    _step_settings: dict[str, Any] = field(init=False)

    def __post_init__(self):
        offered = {"generator": self.generators, "eta": 0.0}  # as stock diffusers gives them
        taken = inspect.signature(self.scheduler.step).parameters
        self._step_settings = {name: value for name, value in offered.items() if name in taken}

    def results(self) -> Iterator[tuple[int, Tensor]]:
        """Each member with its latents, ``float32[C, h, w]``."""
        return zip(self.members, self.latents, strict=True)

    def model_inputs(self, timestep: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each member with its latents as the UNet wants them, ``float32[C, h, w]``."""
        return zip(self.members, self.scheduler.scale_model_input(self.latents, timestep), strict=True)

    def step(self, regions: Sequence[_Region], timestep: Tensor) -> None:
        """Blend the regions' predictions on each canvas, and take one step of the scheduler."""
        model_output = torch.stack(
            [
                blender([region.prediction for region in regions if region.canvas == member])
                for member, blender in zip(self.members, self.blenders, strict=True)
            ]
        )
        self.latents = self.scheduler.step(
            model_output, timestep, self.latents, **self._step_settings, return_dict=False
        )[0]


def _group_canvases(
    pipeline: LatentDiffusion, canvases: Sequence[Canvas], num_inference_steps: int, window_variance: float
) -> list[_CanvasGroup]:
    """Canvases by size, each with its own noise: the draw of a canvas never depends on the others."""
    stride_px, device = pipeline.latent_stride_px, pipeline.device
    by_size = defaultdict(list)
    for index, canvas in enumerate(canvases):
        by_size[tuple(size // stride_px for size in canvas.layout.canvas_hw)].append(index)
    groups = []
    for latent_hw, members in by_size.items():
        shape = (1, pipeline.latent_channels, *latent_hw)
        generators = [torch.Generator(device).manual_seed(canvases[index].noise_seed) for index in members]
        noise = torch.cat([torch.randn(shape, generator=draw, device=device) for draw in generators])
        scheduler = copy.deepcopy(pipeline.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=device)
        if hasattr(scheduler, "noise_sampler_seed"):  # it takes no generator, and would draw its own seed
            scheduler.noise_sampler_seed = [canvases[index].noise_seed for index in members]
        latents = noise * scheduler.init_noise_sigma
        boxes = [canvases[index].layout.latent_boxes(stride_px) for index in members]
        blenders = [RegionBlender(its_boxes, latent_hw, device, window_variance) for its_boxes in boxes]
        groups.append(_CanvasGroup(members, latents, scheduler, blenders, generators))
    return groups


def _collect(latents: Tensor, regions: Sequence[_Region], canvas: int) -> DenoisedCanvas:
    """What became of one canvas."""
    regions = [region for region in regions if region.canvas == canvas]
    return DenoisedCanvas(
        latents=latents,
        attention_maps=tuple(region.attention_maps for region in regions),
        attended_tokens=tuple(region.attended_tokens for region in regions),
    )
