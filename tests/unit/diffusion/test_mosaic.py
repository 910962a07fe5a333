import copy
import random
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers

from mflight.diffusion.attention import AttentionSettings
from mflight.diffusion.checkpoint import build_scheduler
from mflight.diffusion.mosaic import Canvas, denoise_mosaic
from mflight.diffusion.pipeline import load_pipeline
from mflight.functional.layout import MosaicLayout, draw_layout
from mflight.synthesis.request import Prompt

TEXTS = ("a photo of a cup", "a photo of a bolt", "a single fish", "a small sea horse")
STOCK_SCHEDULERS = sorted(one.name for one in KarrasDiffusionSchedulers if "SDE" not in one.name)
NAMES = ("cup", "bolt", "fish", "sea horse")


def canvas(seed, num_regions=4, guidance_scale=3.0, center_ratio_range=(0.75, 1.25), **settings):
    layout = draw_layout(
        num_regions=num_regions,
        region_hw=(32, 32),
        overlap_hw=(8, 8),
        center_ratio_range=center_ratio_range,
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


def test_the_attention_to_a_name_is_the_mean_over_its_tokens(tiny_pipeline):
    text, found = TEXTS[3], {}
    for name in ("sea", "horse", "sea horse"):
        prompt = Prompt(text, (text.index(name), text.index(name) + len(name)))
        one = canvas(1, num_regions=1, prompts=(prompt,))
        (found[name],) = denoise_mosaic(tiny_pipeline, [one], num_inference_steps=2)
    parts = [found[name] for name in ("sea", "horse")]
    first, second = (len(part.attended_tokens[0]) for part in parts)
    assert len(found["sea horse"].attended_tokens[0]) == first + second
    for ours, *of_parts in zip(
        *(each.attention_maps[0] for each in (found["sea horse"], *parts)), strict=True
    ):
        expected = (first * of_parts[0] + second * of_parts[1]) / (first + second)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def stock(tiny_checkpoint):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_plain_stable_diffusion(stock, pipeline, guidance_scale):
    """One region of one canvas against stock diffusers with the same scheduler; also twice in one batch."""
    one = canvas(7, num_regions=1, guidance_scale=guidance_scale, negative_prompts=("sand",))
    denoised, *_ = denoise_mosaic(pipeline, [one, replace(one, noise_seed=8)], num_inference_steps=5)
    stock.scheduler = copy.deepcopy(pipeline.scheduler)
    settings = {"num_inference_steps": 5, "guidance_scale": guidance_scale, "negative_prompt": "sand"}
    generator = torch.Generator().manual_seed(7)
    expected = stock(
        TEXTS[0], height=32, width=32, output_type="latent", generator=generator, **settings
    ).images
    torch.testing.assert_close(denoised.latents, expected[0], rtol=1e-4, atol=1e-4)


def test_one_region_without_guidance_is_plain_stable_diffusion(tiny_pipeline, stock):
    assert_plain_stable_diffusion(stock, tiny_pipeline, guidance_scale=1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")  # theirs, of NumPy
@pytest.mark.parametrize("name", [None, *STOCK_SCHEDULERS, "TCDScheduler", "LCMScheduler"])
def test_one_region_is_plain_stable_diffusion(tiny_pipeline, stock, name):
    pipeline = replace(tiny_pipeline, scheduler=build_scheduler(tiny_pipeline.files, name))
    assert_plain_stable_diffusion(stock, pipeline, guidance_scale=5.0)


@pytest.mark.skipif(find_spec("torchsde") is None, reason="torchsde is not installed")
def test_scheduler_with_a_seed_of_its_own_follows_the_noise_seed(tiny_pipeline, stock):
    scheduler = build_scheduler(tiny_pipeline.files, "DPMSolverSDEScheduler", {"noise_sampler_seed": 7})
    assert_plain_stable_diffusion(stock, replace(tiny_pipeline, scheduler=scheduler), guidance_scale=5.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FlowMatchEulerDiscreteScheduler", "is without init_noise_sigma, scale_model_input"),
        ("RePaintScheduler", r"is without step\(model_output, timestep, sample\)"),
        ("KarrasVeScheduler", r"is without step\(model_output, timestep, sample\)"),
        ("ScoreSdeVeScheduler", "is without step$"),
    ],
)
def test_scheduler_that_steps_in_another_way_is_refused(tiny_pipeline, name, message):
    with pytest.raises(ValueError, match=f"as those of StableDiffusionPipeline do, {name} {message}"):
        build_scheduler(tiny_pipeline.files, name)


@pytest.mark.skipif(find_spec("torchsde") is not None, reason="torchsde is installed")
def test_scheduler_whose_package_is_missing_says_which(tiny_pipeline):
    with pytest.raises(ValueError, match=r"'DPMSolverSDEScheduler' needs .* not installed: torchsde$"):
        build_scheduler(tiny_pipeline.files, "DPMSolverSDEScheduler")


def test_regions_of_equal_shape_share_a_unet_call_with_both_guidance_halves(tiny_pipeline):
    """Four shapes of region on two canvases of one layout, then one shape on both."""

    def batch_sizes(*canvases, **settings):
        sizes = []
        hook = tiny_pipeline.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        try:
            denoise_mosaic(tiny_pipeline, canvases, num_inference_steps=1, **settings)
        finally:
            hook.remove()
        return sizes

    first = canvas(1)
    shapes = {(x2 - x1, y2 - y1) for x1, y1, x2, y2 in first.layout.region_boxes}
    assert len(shapes) == 4
    assert batch_sizes(first, replace(first, noise_seed=2)) == [2 * 2] * 4
    even = canvas(1, center_ratio_range=(1.0, 1.0))
    assert batch_sizes(even, replace(even, noise_seed=2)) == [2 * 8]
    assert batch_sizes(even, replace(even, noise_seed=2), max_batch=6) == [6, 6, 4]


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
        ("head_noun", ["sea"]),  # the last word before the parenthesis
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


def test_window_variance_reaches_the_overlap_and_nothing_else(tiny_pipeline):
    narrow, wide = (
        denoise_mosaic(tiny_pipeline, [canvas(1)], num_inference_steps=1, window_variance=variance)[0].latents
        for variance in (0.01, 1.0)
    )
    (_, _, x2, y2), *_ = canvas(1).layout.latent_boxes(4)
    assert not torch.allclose(wide, narrow)
    torch.testing.assert_close(wide[:, : y2 - 2, : x2 - 2], narrow[:, : y2 - 2, : x2 - 2])  # overlap: 2 cells


def test_edge_off_the_latent_grid_is_refused(tiny_pipeline):
    layout = MosaicLayout(canvas_hw=(32, 30), region_boxes=((0, 0, 30, 32),), base_region_hw=(32, 30))
    off_grid = canvas(1, num_regions=1, layout=layout)
    with pytest.raises(ValueError, match=r"stride 4 px, got \(32, 30\)"):
        denoise_mosaic(tiny_pipeline, [off_grid], num_inference_steps=1)


def test_nothing_to_draw_gives_nothing(tiny_pipeline):
    assert denoise_mosaic(tiny_pipeline, [], num_inference_steps=1) == []
