"""Randomly initialised checkpoints in the very formats of Stable Diffusion 1.x, 2.x and XL.

Block types, layer counts, head layout, projections, schedulers, tokenizer padding and VAE scaling are those
of the real ones; widths are small.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast

from tests.unit.diffusion.tiny_checkpoint import WORDS, word_tokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def save_family_checkpoint(family: str, folder: Path) -> Path:
    """Write the checkpoint of ``family`` (``"sd1"``, ``"sd2"`` or ``"sdxl"``) to ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl}[family](folder).save_pretrained(folder)
    return folder


def clip_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> CLIPTokenizerFast:
    """77 tokens; ``!!`` is one piece, unless ``!`` pads, which makes it a token of its own."""
    return word_tokenizer(folder, model_max_length=77, pad_token=pad_token, words=(*WORDS, "!!"))


def _sd1(folder: Path) -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    return StableDiffusionPipeline(
        vae=_vae(scaling_factor=0.18215),
        text_encoder=_tower(CLIPTextModel, tokenizer, hidden_size=24, hidden_act="quick_gelu"),
        tokenizer=tokenizer,
        unet=_sd_unet(cross_attention_dim=24, attention_head_dim=8),
        scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd2(folder: Path) -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer(folder / "tokenizer", pad_token="!")
    return StableDiffusionPipeline(
        vae=_vae(scaling_factor=0.18215),
        text_encoder=_tower(CLIPTextModel, tokenizer, hidden_size=32, hidden_act="gelu", projection_dim=16),
        tokenizer=tokenizer,
        unet=_sd_unet(
            cross_attention_dim=32,
            attention_head_dim=[1, 2, 4, 4],
            use_linear_projection=True,
            upcast_attention=True,
        ),
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(folder: Path) -> StableDiffusionXLPipeline:
    tokenizers = clip_tokenizer(folder / "tokenizer"), clip_tokenizer(folder / "tokenizer_2", pad_token="!")
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_tower(CLIPTextModel, tokenizers[0], hidden_size=24, hidden_act="quick_gelu"),
        text_encoder_2=_tower(
            CLIPTextModelWithProjection, tokenizers[1], hidden_size=40, hidden_act="gelu", projection_dim=40
        ),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=[1, 2, 3],
            attention_head_dim=[1, 2, 4],
            cross_attention_dim=24 + 40,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _sd_unet(**settings) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        **settings,
    )


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def _tower(tower_class: type, tokenizer: CLIPTokenizerFast, **settings):
    return tower_class(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **settings,
        )
    )
