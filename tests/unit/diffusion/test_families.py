"""Stable Diffusion 1.x, 2.x and XL, each on a random checkpoint of its format, against stock diffusers."""

import random
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from mflight.diffusion.mosaic import Canvas, denoise_mosaic
from mflight.diffusion.pipeline import load_pipeline
from mflight.functional.layout import draw_layout
from mflight.synthesis.request import Prompt
from tests.unit.diffusion.checkpoint_index import copy_with_index
from tests.unit.diffusion.family_checkpoints import save_family_checkpoint
from tests.unit.diffusion.tiny_checkpoint import word_tokenizer

NUM_STEPS = 2
FAMILIES = ("sd1", "sd2", "sdxl")
TEXT = "a photo of a single sea horse, a small fish"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {family: save_family_checkpoint(family, folder / family) for family in FAMILIES}


def canvas(*, num_regions=1, seed=5, guidance_scale=5.0, negative=""):
    layout = draw_layout(
        num_regions=num_regions,
        region_hw=(64, 96),
        overlap_hw=(16, 16),
        center_ratio_range=(0.75, 1.25),
        stride_px=8,
        draws=random.Random(seed),
    )
    prompt = Prompt(TEXT, (TEXT.index("sea"), TEXT.index(",")))
    return Canvas(
        layout,
        (prompt,) * num_regions,
        (negative,) * num_regions,
        (guidance_scale,) * num_regions,
        noise_seed=seed,
    )


def draw_with_stock(checkpoint, output_type, *, guidance_scale=5.0, negative=""):
    stock = DiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    return stock(
        TEXT,
        height=64,
        width=96,
        num_inference_steps=NUM_STEPS,
        guidance_scale=guidance_scale,
        negative_prompt=negative or None,
        generator=torch.Generator().manual_seed(5),
        output_type=output_type,
    ).images[0]


@pytest.mark.parametrize(
    ("family", "guidance_scale", "negative"),
    [*((family, 5.0, negative) for family in FAMILIES for negative in ("", "sand")), ("sdxl", 1.0, "")]
    + [("sd1", scale, "sand") for scale in (0.0, 0.5, 1.0)],  # off, as in stock diffusers
)
def test_one_region_is_the_stock_pipeline(checkpoints, family, guidance_scale, negative):
    settings = {"guidance_scale": guidance_scale, "negative": negative}
    pipeline = load_pipeline(str(checkpoints[family]))
    (denoised,) = denoise_mosaic(pipeline, [canvas(**settings)], num_inference_steps=NUM_STEPS)
    expected = draw_with_stock(checkpoints[family], "latent", **settings)
    torch.testing.assert_close(denoised.latents, expected, rtol=1e-4, atol=1e-4)
    assert denoised.attended_tokens == ((6, 7),)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 8.0])
def test_a_unet_distilled_with_guidance_is_told_the_scale(checkpoints, tmp_path, guidance_scale):
    """A latent consistency model: no second half, an embedding of the scale instead."""
    folder = copy_with_index(checkpoints["sd1"], tmp_path / "lcm")
    config = UNet2DConditionModel.load_config(folder / "unet") | {"time_cond_proj_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    settings = {"guidance_scale": guidance_scale, "negative": "sand"}
    (denoised,) = denoise_mosaic(
        load_pipeline(str(folder)), [canvas(**settings)], num_inference_steps=NUM_STEPS
    )
    expected = draw_with_stock(folder, "latent", **settings)
    torch.testing.assert_close(denoised.latents, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_image_is_that_of_the_stock_pipeline(checkpoints, family):
    pipeline = load_pipeline(str(checkpoints[family]))
    (denoised,) = denoise_mosaic(pipeline, [canvas()], num_inference_steps=NUM_STEPS)
    image = pipeline.decode_latents(denoised.latents[None])[0].numpy().astype(int)
    exact = draw_with_stock(checkpoints[family], "np") * 255
    to_8_bits = np.round if family == "sdxl" else np.floor
    levels_apart = np.abs(image - to_8_bits(exact))
    assert levels_apart.max() <= 1 and (levels_apart > 0).mean() < 0.01


@pytest.mark.parametrize(("family", "levels"), [("sd1", (0, 1, 2)), ("sd2", (0, 1, 2)), ("sdxl", (1, 2))])
def test_maps_are_those_of_the_levels_with_cross_attention(checkpoints, family, levels):
    pipeline = load_pipeline(str(checkpoints[family]))
    (denoised,) = denoise_mosaic(pipeline, [canvas()], num_inference_steps=1)
    assert [tuple(m.shape) for m in denoised.attention_maps[0]] == [
        (8 >> level, 12 >> level) for level in levels
    ]


def test_mosaic_of_sdxl_does_not_depend_on_its_batch(checkpoints):
    pipeline = load_pipeline(str(checkpoints["sdxl"]))
    canvases = [canvas(num_regions=2, seed=1), canvas(num_regions=2, seed=2, negative="sand")]
    together = denoise_mosaic(pipeline, canvases, num_inference_steps=1)
    for one, expected in zip(canvases, together, strict=True):
        (alone,) = denoise_mosaic(pipeline, [one], num_inference_steps=1, max_batch=2)
        torch.testing.assert_close(alone.latents, expected.latents, rtol=1e-4, atol=1e-5)


def test_region_of_sdxl_is_a_whole_picture_of_its_own_size(checkpoints):
    text = load_pipeline(str(checkpoints["sdxl"])).text
    condition = text.encode_negative("sand")
    added = text.added_cond_kwargs([condition, condition], (64, 96))
    assert added["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]] * 2
    assert torch.equal(added["text_embeds"][1], condition.pooled_prompt_embeds)


def test_empty_negative_prompt_is_encoded_where_the_checkpoint_says_so(checkpoints, tmp_path):
    encoding = copy_with_index(checkpoints["sdxl"], tmp_path / "xl", force_zeros_for_empty_prompt=False)
    zeros, encoded = (
        load_pipeline(str(folder)).text.encode_negative("") for folder in (checkpoints["sdxl"], encoding)
    )
    assert not zeros.prompt_embeds.any() and not zeros.pooled_prompt_embeds.any()
    assert encoded.prompt_embeds.any() and encoded.pooled_prompt_embeds.any()
    (denoised,) = denoise_mosaic(load_pipeline(str(encoding)), [canvas()], num_inference_steps=NUM_STEPS)
    expected = draw_with_stock(encoding, "latent")
    torch.testing.assert_close(denoised.latents, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "dtype", "vae_dtype"),
    [
        ("sdxl", torch.float16, torch.float32),
        ("sdxl", torch.bfloat16, torch.bfloat16),
        ("sd2", torch.float16, torch.float16),
    ],
)
def test_only_the_vae_of_sdxl_stays_in_float32(checkpoints, family, dtype, vae_dtype):
    pipeline = load_pipeline(str(checkpoints[family]), dtype=dtype)
    assert (pipeline.dtype, pipeline.vae.dtype) == (dtype, vae_dtype)
    (denoised,) = denoise_mosaic(pipeline, [canvas()], num_inference_steps=1)
    full = load_pipeline(str(checkpoints[family]))
    (expected,) = denoise_mosaic(full, [canvas()], num_inference_steps=1)
    torch.testing.assert_close(denoised.latents, expected.latents, rtol=0.05, atol=0.2)
    images = [model.decode_latents(expected.latents[None]).float() for model in (pipeline, full)]
    assert (images[0] - images[1]).abs().mean() < 2


def test_towers_with_different_vocabularies_are_refused(checkpoints, tmp_path):
    folder = tmp_path / "xl"
    shutil.copytree(checkpoints["sdxl"], folder)
    shutil.rmtree(folder / "tokenizer_2")
    word_tokenizer(folder / "tokenizer_2", model_max_length=77, words=("zebra",)).save_pretrained(
        folder / "tokenizer_2"
    )
    with pytest.raises(ValueError, match=r"share one vocabulary, they differ at '!!</w>'"):
        load_pipeline(str(folder))


def test_name_at_different_places_in_both_towers_is_refused(checkpoints):
    text = load_pipeline(str(checkpoints["sdxl"])).text
    prompt = Prompt("a !! cup", (5, 8))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\) in 'a !! cup'"):
        text.encode_prompt(prompt)


def test_missing_second_tower_is_named(checkpoints, tmp_path):
    folder = copy_with_index(checkpoints["sdxl"], tmp_path / "xl")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(FileNotFoundError, match=r"must hold text_encoder_2/config\.json"):
        load_pipeline(str(folder))
