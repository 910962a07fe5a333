"""The text encoder and UNet of the mini checkpoint, and the loss that trains them together."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mflight.minilvis.autoencoder import NUM_CHANNELS, STRIDE_PX, encode_patches, to_unit
from mflight.minilvis.captions import MAX_LENGTH, Caption
from mflight.minilvis.training_scenes import draw_captioned_scene, draw_size

MAX_OBJECTS = 2
_ONE_OBJECT_SHARE = 0.9  # the first 7,700 steps of the shipped checkpoint saw 0.7
_RADIUS_RATIO_RANGE = (0.32, 0.5)  # and the first 13,100 the patch codes' range
_TEXT_WIDTH = 96


def build_unet() -> UNet2DConditionModel:
    """Build the untrained UNet: 64, 96, 128 channels, cross-attention at the first two and the middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(vocabulary_size: int) -> CLIPTextModel:
    """Build the untrained CLIP text tower: two layers of width 96."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=_TEXT_WIDTH,
            intermediate_size=3 * _TEXT_WIDTH,
            projection_dim=_TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Build the scheduler: 1,000 timesteps, cosine, velocity prediction."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # as in Stable Diffusion; "trailing" does not use it
    )


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """Scenes to train on: latents ``[B, C, h, w]``, tokens ``int64[B, T]``, masks and names of ``O`` objects.

    ``object_masks`` ``float32[B, O, h, w]`` is the visible share of each latent cell, ``name_tokens``
    ``bool[B, O, T]`` marks the pieces of each name; both are empty for an object that is not there.
    ``outlines`` ``float32[B, 16, h, w]`` holds the 4 x 4 px of each cell: 1 where any object is.
    """

    latents: Tensor
    input_ids: Tensor
    object_masks: Tensor
    name_tokens: Tensor
    outlines: Tensor


def draw_batch(
    batch_size: int, tokenizer: CLIPTokenizer, seed: tuple[int, int], unconditional_ratio: float
) -> SceneBatch:
    """Draw the scenes of one step; the same ``seed`` (run, step) gives the same batch."""
    draws = np.random.default_rng(seed)
    size_hw = draw_size(draws)
    grid_hw = (size_hw[0] // STRIDE_PX, size_hw[1] // STRIDE_PX)
    images, captions, objects = [], [], []
    object_masks = torch.zeros(batch_size, MAX_OBJECTS, *grid_hw)
    for row in range(batch_size):
        scene, caption = draw_captioned_scene(
            size_hw,
            draws,
            one_object_share=_ONE_OBJECT_SHARE,
            radius_ratio_range=_RADIUS_RATIO_RANGE,
        )
        if draws.random() < unconditional_ratio:
            caption = Caption("", ())
        for slot, mask in enumerate(scene.masks[: len(caption.name_spans)]):
            cells = torch.from_numpy(mask).float()[None, None]
            object_masks[row, slot] = F.avg_pool2d(cells, STRIDE_PX)[0, 0]
        images.append(scene.image)
        objects.append(np.any(scene.masks, axis=0))
        captions.append(caption)
    input_ids, name_tokens = _tokenize(tokenizer, captions)
    outlines = F.pixel_unshuffle(torch.from_numpy(np.stack(objects)).float()[:, None], STRIDE_PX)
    latents = encode_patches(to_unit(np.stack(images)))
    return SceneBatch(latents, input_ids, object_masks, name_tokens, outlines)


def _tokenize(tokenizer: CLIPTokenizer, captions: list[Caption]) -> tuple[Tensor, Tensor]:
    encoded = tokenizer(
        [caption.text for caption in captions], padding="max_length", max_length=MAX_LENGTH, truncation=True,
        return_offsets_mapping=True, return_tensors="pt",
    )  # fmt: skip
    starts, ends = encoded.offset_mapping.unbind(-1)  # [B, T]
    name_tokens = torch.zeros(len(captions), MAX_OBJECTS, MAX_LENGTH, dtype=torch.bool)
    for row, caption in enumerate(captions):
        for slot, (begin, end) in enumerate(caption.name_spans):
            name_tokens[row, slot] = (starts[row] < end) & (ends[row] > begin)
    return encoded.input_ids, name_tokens


class _KeepingProcessor:
    """Cross-attention that keeps its probabilities, mean over heads, with their gradients."""

    def __init__(self, kept: list[Tensor]):
        self.kept = kept

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None, **_: object,
    ) -> Tensor:  # fmt: skip
        query, key, value = (
            states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for states in (
                attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
            )
        )  # [B, heads, *, d]  # fmt: skip
        probability = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)  # [B, heads, hw, T]
        self.kept.append(probability.mean(dim=1))
        joined = (probability @ value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](joined))


_LOSS_WEIGHTS = {"velocity": 1.0, "token": 0.1, "pixel": 0.05, "outline": 0.3}


class TextToImage(nn.Module):
    """Text encoder and UNet, trained together on velocity with grounded attention and a hint at the outline.

    The hint: a linear head, which is not shipped, tells each pixel's object or background from the UNet's
    features. Most of the velocity's error is texture that nobody can foresee; here only the outline counts.

    Source:
        Salimans and Ho, "Progressive Distillation", arXiv:2202.00512 (velocity);
        Wang et al., "TokenCompose", arXiv:2312.03626 (the two grounding terms);
        Yu et al., "Representation Alignment for Generation", arXiv:2410.06940 (that features which must
        tell what is in the clean image make a diffusion model learn faster).
    """

    def __init__(self, vocabulary_size: int):
        super().__init__()
        self.text_encoder = build_text_encoder(vocabulary_size)
        self.unet = build_unet()
        self.scheduler = build_scheduler()
        self.outline_head = nn.Conv2d(self.unet.config.block_out_channels[1], STRIDE_PX**2, 1)
        self._kept: list[Tensor] = []
        keeping = _KeepingProcessor(self._kept)
        own = self.unet.attn_processors
        self.unet.set_attn_processor(
            {name: keeping if ".attn2." in name else processor for name, processor in own.items()}
        )

    def forward(self, batch: SceneBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses ``velocity``, ``token``, ``pixel``, ``outline`` and their weighted ``total``."""
        noise = torch.randn(batch.latents.shape, generator=generator)
        timesteps = self._draw_timesteps(len(noise), generator)
        noisy = self.scheduler.add_noise(batch.latents, noise, timesteps)
        velocity = self.scheduler.get_velocity(batch.latents, noise, timesteps)
        embeds = self.text_encoder(batch.input_ids).last_hidden_state
        self._kept.clear()
        features: list[Tensor] = []
        hook = self.unet.up_blocks[1].register_forward_hook(lambda *call: features.append(call[-1]))
        try:
            samples = noisy.contiguous(memory_format=torch.channels_last)
            predicted = self.unet(samples, timesteps, embeds).sample
        finally:
            hook.remove()
        losses = {"velocity": F.mse_loss(predicted, velocity)}
        losses |= _grounding(self._kept, batch)
        losses["outline"] = F.binary_cross_entropy_with_logits(self.outline_head(features[0]), batch.outlines)
        losses["total"] = sum(weight * losses[name] for name, weight in _LOSS_WEIGHTS.items())
        self._kept.clear()
        return losses

    def _draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw timesteps with density rising as t^0.8: class and outline are decided where noise is high."""
        num_timesteps = self.scheduler.config.num_train_timesteps
        share = torch.rand(count, generator=generator) ** (1 / 1.8)
        return (share * num_timesteps).long().clamp_max(num_timesteps - 1)


def _grounding(kept: list[Tensor], batch: SceneBatch) -> dict[str, Tensor]:
    """Ask that the attention of a name's tokens fall inside its object, and fill it.

    ``token``: mean of (1 - share of the token's attention inside the object)^2 over layers and tokens.
    ``pixel``: binary cross-entropy between the summed attention of the name's tokens and the object.
    """
    height, width = batch.latents.shape[-2:]
    wanted = batch.name_tokens.float()  # [B, O, T]
    present = wanted.any(dim=-1).float()  # [B, O]
    token, pixel = [], []
    for probability in kept:
        scale = round((height * width / probability.shape[1]) ** 0.5)
        grid_hw = (-(-height // scale), -(-width // scale))
        inside = F.adaptive_avg_pool2d(batch.object_masks, grid_hw).flatten(2)  # [B, O, hw]
        attended = torch.einsum("bpt,bop->bot", probability, inside)  # [B, O, T]
        share = attended / probability.sum(dim=1)[:, None].clamp_min(1e-6)
        token.append((wanted * (1 - share) ** 2).sum() / wanted.sum().clamp_min(1))
        filled = torch.einsum("bpt,bot->bop", probability, wanted).clamp(1e-5, 1 - 1e-5)
        cross_entropy = F.binary_cross_entropy(filled, inside, reduction="none").mean(dim=-1)
        pixel.append((present * cross_entropy).sum() / present.sum().clamp_min(1))
    return {"token": torch.stack(token).mean(), "pixel": torch.stack(pixel).mean()}
