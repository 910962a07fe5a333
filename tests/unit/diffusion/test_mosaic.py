import random
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from mflight.diffusion.attention import AttentionSettings
from mflight.diffusion.mosaic import Canvas, denoise_mosaic
from mflight.diffusion.pipeline import load_pipeline
from mflight.functional.layout import MosaicLayout, draw_layout
from mflight.synthesis.request import Prompt

TEXTS = ("a photo of a cup", "a photo of a bolt", "a single fish", "a small sea horse")
NAMES = ("cup", "bolt", "fish", "sea horse")


def canvas(seed, num_regions=4, guidance_scale=3.0, **settings):
    layout = draw_layout(
        num_regions=num_regions,
        region_hw=(32, 32),
        overlap_hw=(8, 8),
        center_ratio_range=(0.75, 1.25),
        stride_px=4,
        draws=random.Random(seed),
    )
    count = len(layout.region_boxes)
    prompts = tuple(
        Prompt(text, (text.index(name), text.index(name) + len(name)))
        for text, name in zip(TEXTS[:count], NAMES, strict=False)
    )
    return replace(
        Canvas(layout, prompts, ("",) * count, (guidance_scale,) * count, noise_seed=seed), **settings
    )


def assert_same(actual, expected):
    torch.testing.assert_close(actual.latents, expected.latents, rtol=1e-4, atol=1e-5)
    assert actual.attended_tokens == expected.attended_tokens
    for maps, expected_maps in zip(actual.attention_maps, expected.attention_maps, strict=True):
        for attention_map, reference in zip(maps, expected_maps, strict=True):
            torch.testing.assert_close(attention_map, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheduler", [None, "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
def test_canvas_does_not_depend_on_its_batch(tiny_checkpoint, scheduler):
    pipeline = load_pipeline(str(tiny_checkpoint), scheduler=scheduler)
    canvases = [
        canvas(1),
        canvas(2),
        canvas(3, num_regions=1),
        canvas(4, num_regions=2),
        canvas(5, guidance_scale=1.0),
    ]
    together = denoise_mosaic(pipeline, canvases, num_inference_steps=4)
    for one, expected in zip(canvases, together, strict=True):
        (alone,) = denoise_mosaic(pipeline, [one], num_inference_steps=4, max_batch=2)
        assert_same(alone, expected)


@pytest.mark.parametrize("scheduler", [None, "PNDMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_one_region_is_plain_stable_diffusion(tiny_checkpoint, scheduler, guidance_scale):
    pipeline = load_pipeline(str(tiny_checkpoint), scheduler=scheduler)
    one = canvas(7, num_regions=1, guidance_scale=guidance_scale, negative_prompts=("sand",))
    (denoised,) = denoise_mosaic(pipeline, [one], num_inference_steps=5)
    stock = StableDiffusionPipeline.from_pretrained(
        tiny_checkpoint, scheduler=pipeline.scheduler, safety_checker=None
    )
    stock.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 5, "guidance_scale": guidance_scale, "negative_prompt": "sand"}
    generator = torch.Generator().manual_seed(7)
    expected = stock(
        TEXTS[0], height=32, width=32, output_type="latent", generator=generator, **settings
    ).images
    torch.testing.assert_close(denoised.latents, expected[0], rtol=1e-4, atol=1e-4)


def test_maps_have_the_sizes_of_their_region(tiny_pipeline):
    one = canvas(1)
    (denoised,) = denoise_mosaic(tiny_pipeline, [one], num_inference_steps=2)
    assert denoised.latents.shape == (3, 16, 16)
    for (x1, y1, x2, y2), maps in zip(one.layout.region_boxes, denoised.attention_maps, strict=True):
        size = ((y2 - y1) // 4, (x2 - x1) // 4)
        assert [tuple(m.shape) for m in maps] == [size, tuple(-(-side // 2) for side in size)]
        assert all(0 < m.min() and m.max() < 1 for m in maps)


def test_only_counted_evaluations_are_kept(tiny_pipeline):
    def maps(**settings):
        (denoised,) = denoise_mosaic(
            tiny_pipeline, [canvas(1)], num_inference_steps=3, attention=AttentionSettings(**settings)
        )
        return denoised.attention_maps[0][0]

    parts = [maps(first_evaluation=k, stop_evaluation=k + 1) for k in range(3)]
    torch.testing.assert_close(torch.stack(parts).mean(0), maps())
    assert not torch.allclose(parts[0], parts[2])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("name", ["sea", "fish"]),
        ("head_noun", ["sea"]),
        ("last", ["fish"]),
        ("published", ["fish"]),
    ],
)
def test_tokens_blocks_and_levels_are_settings(tiny_pipeline, rule, expected):
    text = "a single sea (fish)"
    one = canvas(1, num_regions=1, prompts=(Prompt(text, (9, 19)),))
    attention = AttentionSettings(token_rule=rule, blocks=("up",), levels=(1,))
    (denoised,) = denoise_mosaic(tiny_pipeline, [one], num_inference_steps=1, attention=attention)
    places = denoised.attended_tokens[0]
    (tokenizer,) = tiny_pipeline.text.tokenizers
    words = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert [words[place].strip() for place in places] == expected
    assert [tuple(m.shape) for m in denoised.attention_maps[0]] == [(4, 4)]


def test_first_evaluation_beyond_the_last_is_refused(tiny_pipeline):
    attention = AttentionSettings(first_evaluation=3)
    with pytest.raises(ValueError, match="below the scheduler's 3 evaluations, got 3"):
        denoise_mosaic(tiny_pipeline, [canvas(1)], num_inference_steps=3, attention=attention)


def test_guidance_and_negative_prompt_belong_to_their_region(tiny_pipeline):
    def draw(**settings):
        return denoise_mosaic(tiny_pipeline, [canvas(1, **settings)], num_inference_steps=1)[0].latents

    plain = draw()
    guided = draw(guidance_scales=(9.0, 3.0, 3.0, 3.0))
    negative = draw(negative_prompts=("fish", "", "", ""))
    for changed in (guided, negative):
        assert not torch.allclose(changed[:, :4, :4], plain[:, :4, :4])
        torch.testing.assert_close(changed[:, -4:, -4:], plain[:, -4:, -4:])


def test_edge_off_the_latent_grid_is_refused(tiny_pipeline):
    layout = MosaicLayout(canvas_hw=(32, 30), region_boxes=((0, 0, 30, 32),), base_region_hw=(32, 30))
    off_grid = canvas(1, num_regions=1, layout=layout)
    with pytest.raises(ValueError, match=r"stride 4 px, got \(32, 30\)"):
        denoise_mosaic(tiny_pipeline, [off_grid], num_inference_steps=1)


def test_nothing_to_draw_gives_nothing(tiny_pipeline):
    assert denoise_mosaic(tiny_pipeline, [], num_inference_steps=1) == []
