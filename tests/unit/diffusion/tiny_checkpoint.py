"""A randomly initialised checkpoint in the folder format of ``StableDiffusionPipeline``, for unit tests.

Unlike Stable Diffusion it has 3 latent channels, a latent stride of 4 px and 32 tokens, so that nothing may
rely on 4, 8 and 77.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

MAX_TOKENS = 32
WORDS = (
    "a",
    "photo",
    "of",
    "single",
    "sea",
    "horse",
    "cup",
    "bolt",
    "small",
    "fish",
    "container",
    "on",
    "sand",
)


def save_tiny_checkpoint(folder: Path) -> Path:
    """Write the checkpoint to ``folder``; the same bytes every time."""
    tokenizer = word_tokenizer(folder / "tokenizer", model_max_length=MAX_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(8, 8, 8),
                latent_channels=3,
                norm_num_groups=4,
                scaling_factor=0.5,
            ),
            text_encoder=_text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id),
            tokenizer=tokenizer,
            unet=tiny_unet(),
            scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


def tiny_unet() -> UNet2DConditionModel:
    """Cross-attention at the latents' own size and at half of it, 2 heads each; none at a quarter."""
    return UNet2DConditionModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )


def _text_encoder(vocab_size: int, bos_token_id: int, eos_token_id: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
        )
    )


def word_tokenizer(
    folder: Path, *, model_max_length: int, pad_token: str = "<|endoftext|>", words: Sequence[str] = WORDS
) -> CLIPTokenizerFast:
    """Byte-level BPE whose merges make one token of each of ``words``; other words fall into characters."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = characters + [f"{character}</w>" for character in characters]
    merges = []
    for word in words:
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for right in rest:
            if (left, right) not in merges:
                merges.append((left, right))
                pieces.append(left + right)
            left += right
    return save_clip_tokenizer(folder, pieces, merges, model_max_length, pad_token)


def save_clip_tokenizer(
    folder: Path,
    pieces: Sequence[str],
    merges: Sequence[tuple[str, str]],
    model_max_length: int,
    pad_token: str = "<|endoftext|>",
) -> CLIPTokenizerFast:
    """Write the two files of a CLIP tokenizer, and load it."""
    vocabulary = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(vocabulary)}))
    merge_lines = [" ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merge_lines]) + "\n")
    return CLIPTokenizerFast.from_pretrained(folder, model_max_length=model_max_length, pad_token=pad_token)
