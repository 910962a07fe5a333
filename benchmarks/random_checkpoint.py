"""A checkpoint of Stable Diffusion 1.4's architecture with random weights: as fast as the real one.

The tokenizer is the mini checkpoint's, set to 77 tokens; its ids are few but valid.
"""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

from mflight.minilvis.checkpoint import checkpoint_folder

NUM_TOKENS = 77


def save_sd14(
    folder: Path, device: str, *, width: int = 320, channels: int = 128, text_layers: int = 12
) -> Path:
    """Write the checkpoint, 4.3 GB, in diffusers' folder format.

    Args:
        folder: where to.
        device: where the weights are drawn.
        width: of the UNet's first block; 320 is SD 1.4's, less makes a small one of the same form.
        channels: of the autoencoder's first block; 128 is SD 1.4's.
        text_layers: of the text tower; 12 is SD 1.4's.

    Returns:
        ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(Path(checkpoint_folder()) / "tokenizer", folder / "tokenizer")
    tokenizer = CLIPTokenizerFast.from_pretrained(folder / "tokenizer", model_max_length=NUM_TOKENS)
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            cross_attention_dim=768,
            attention_head_dim=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(channels, 2 * channels, 4 * channels, 4 * channels),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=text_layers,
                num_attention_heads=12,
                max_position_embeddings=NUM_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
