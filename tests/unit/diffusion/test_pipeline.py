import copy
import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mflight.diffusion.mosaic import Canvas, denoise_mosaic
from mflight.diffusion.pipeline import NotFiniteError, load_pipeline
from mflight.functional.layout import MosaicLayout
from mflight.synthesis.request import Prompt
from tests.unit.diffusion.checkpoint_index import copy_with_index


def test_sizes_come_from_the_checkpoint(tiny_pipeline):
    assert tiny_pipeline.latent_stride_px == 4
    assert tiny_pipeline.latent_channels == 3
    assert tiny_pipeline.text.max_prompt_tokens == 32
    assert tiny_pipeline.dtype == torch.float32


def test_text_is_encoded_as_stock_diffusers_does(tiny_checkpoint, tiny_pipeline):
    stock = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    expected, _ = stock.encode_prompt("a photo of a cup", "cpu", 1, do_classifier_free_guidance=False)
    condition = tiny_pipeline.text.encode_negative("a photo of a cup")
    torch.testing.assert_close(condition.prompt_embeds, expected[0])
    assert condition.pooled_prompt_embeds is None
    assert tiny_pipeline.text.encode_negative("a photo of a cup") is condition


def test_image_is_truncated_not_rounded(tiny_pipeline):
    latents = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    images = tiny_pipeline.decode_latents(latents)
    assert images.shape == (2, 20, 24, 3)
    with torch.inference_mode():
        exact = ((tiny_pipeline.vae.decode(latents[1:] / 0.5).sample / 2 + 0.5).clamp(0, 1) * 255)[0]
    assert torch.equal(images[1].permute(2, 0, 1).float(), exact.floor())


def test_scheduler_is_built_from_the_checkpoints_own(tiny_checkpoint):
    pipeline = load_pipeline(
        str(tiny_checkpoint), scheduler="DPMSolverMultistepScheduler", scheduler_settings={"solver_order": 3}
    )
    assert type(pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert pipeline.scheduler.config.solver_order == 3
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_dtype_is_named_or_given(tiny_checkpoint):
    for dtype in ("bfloat16", torch.bfloat16):
        assert load_pipeline(str(tiny_checkpoint), dtype=dtype).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("setting", "wrong", "message"),
    [
        ("dtype", "int8", "got 'int8'"),
        ("dtype", 16, "input_value=16"),
        ("device", "gpu", "device must be one of torch such as cpu or cuda:0, got 'gpu'"),
        ("channels_last", "perhaps", "input_value='perhaps'"),
        ("scheduler_settings", ["order"], r"input_value=\['order'\]"),
    ],
)
def test_wrong_settings_are_refused_before_the_checkpoint_is_looked_for(setting, wrong, message):
    with pytest.raises(ValueError, match=message):
        load_pipeline("nowhere", **{setting: wrong})


def test_hydra_builds_it_with_settings_of_its_scheduler(tiny_checkpoint):
    node = {
        "_target_": "mflight.diffusion.pipeline.load_pipeline",
        "checkpoint": str(tiny_checkpoint),
        "dtype": "bfloat16",
        "device": "cpu",
        "scheduler_settings": {"prediction_type": "epsilon"},
    }
    pipeline = instantiate(OmegaConf.create(node), _convert_="all")
    assert (pipeline.dtype, pipeline.device.type) == (torch.bfloat16, "cpu")
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_hash_follows_the_weights(tiny_checkpoint, tmp_path):
    copy = copy_with_index(tiny_checkpoint, tmp_path / "copy")
    first = load_pipeline(str(tiny_checkpoint)).weights_sha256
    assert load_pipeline(str(copy)).weights_sha256 == first
    model = StableDiffusionPipeline.from_pretrained(copy, safety_checker=None)
    with torch.no_grad():
        next(model.vae.parameters()).add_(1)
    model.save_pretrained(copy)
    assert load_pipeline(str(copy)).weights_sha256 != first


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pipeline(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("missing", ["model_index.json", "unet/config.json", "tokenizer"])
def test_folder_of_another_format_is_refused(tiny_checkpoint, tmp_path, missing):
    folder = copy_with_index(tiny_checkpoint, tmp_path / "broken")
    (shutil.rmtree if missing == "tokenizer" else lambda path: path.unlink())(folder / missing)
    with pytest.raises(FileNotFoundError, match=f"must hold {missing}"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("family", ["FluxPipeline", "StableDiffusion3Pipeline", None])
def test_other_families_are_refused_by_name_and_place(tmp_path, family):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": family}))
    with pytest.raises(ValueError, match=f"got {family!r} in {str(tmp_path)!r}"):
        load_pipeline(str(tmp_path))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub's cache on a machine without a network: makes room for a model, and any download would fail."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def snapshot(hub_id):
        model = tmp_path / f"models--{hub_id.replace('/', '--')}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("0" * 40)
        (model / "snapshots").mkdir()
        return model / "snapshots" / ("0" * 40)

    return snapshot


def test_hub_id_is_loaded_from_the_cache(tiny_checkpoint, tiny_pipeline, hub_cache):
    shutil.copytree(tiny_checkpoint, hub_cache("owner/tiny"))
    pipeline = load_pipeline("owner/tiny")
    assert pipeline.checkpoint == "owner/tiny"
    assert pipeline.weights_sha256 == tiny_pipeline.weights_sha256
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_other_family_of_the_hub_is_refused_before_its_weights_are_fetched(hub_cache):
    """The cache holds the index and nothing else."""
    snapshot = hub_cache("owner/flux")
    snapshot.mkdir()
    (snapshot / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="got 'FluxPipeline' in 'owner/flux'"):
        load_pipeline("owner/flux")
    with pytest.raises(ValueError, match="'owner/nothing' is no folder, nor had from the hub"):
        load_pipeline("owner/nothing")


@pytest.mark.parametrize("setting", ["channels_last", "vae_tiling"])
def test_speed_and_memory_settings_keep_the_image(tiny_checkpoint, tiny_pipeline, setting):
    pipeline = load_pipeline(str(tiny_checkpoint), **{setting: True})
    latents = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = tiny_pipeline.decode_latents(latents).float()
    assert (pipeline.decode_latents(latents) - expected).abs().max() <= 1
    assert pipeline.vae.use_tiling == (setting == "vae_tiling")
    is_channels_last = pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert is_channels_last == (setting == "channels_last")


def test_channels_last_draws_the_same(tiny_checkpoint, tiny_pipeline):
    region = MosaicLayout(canvas_hw=(32, 48), region_boxes=((0, 0, 48, 32),), base_region_hw=(32, 48))
    cup = Canvas(region, (Prompt("a cup", (2, 5)),), ("",), (3.0,), noise_seed=0)
    (plain,), (ours,) = (
        denoise_mosaic(pipeline, [cup], num_inference_steps=3)
        for pipeline in (tiny_pipeline, load_pipeline(str(tiny_checkpoint), channels_last=True))
    )
    torch.testing.assert_close(ours.latents, plain.latents, rtol=1e-4, atol=1e-4)


def test_canvases_decoded_one_by_one_are_those_decoded_together(tiny_pipeline):
    latents = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = (tiny_pipeline.vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1) * 255
    images = tiny_pipeline.decode_latents(latents).permute(0, 3, 1, 2).float()
    assert (images - together.floor()).abs().max() <= 1
    assert (images != together.floor()).float().mean() < 0.01


def test_tiles_are_decoded_where_the_canvas_is_larger_than_the_vae_was_trained_on(
    tiny_checkpoint, tiny_pipeline
):
    latents = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))  # the VAE's own: 8 x 8
    tiled = load_pipeline(str(tiny_checkpoint), vae_tiling=True).decode_latents(latents)
    whole = tiny_pipeline.decode_latents(latents)
    assert tiled.shape == whole.shape == (1, 80, 96, 3)
    assert not torch.equal(tiled, whole)


def test_scheduler_and_setting_that_do_not_exist_are_refused(tiny_checkpoint):
    for wrong in ("NoSuchScheduler", "UNet2DConditionModel"):
        with pytest.raises(ValueError, match=f"got '{wrong}'"):
            load_pipeline(str(tiny_checkpoint), scheduler=wrong)
    with pytest.raises(ValueError, match="DDIMScheduler has no setting 'order'"):
        load_pipeline(str(tiny_checkpoint), scheduler_settings={"order": 2})


def test_a_canvas_that_overflows_in_half_precision_is_decoded_in_float32(
    tiny_checkpoint, tiny_pipeline, caplog
):
    pipeline = load_pipeline(str(tiny_checkpoint), dtype="float16")
    with torch.no_grad():  # finite weights, but what they make of a canvas of ordinary latents is above 65504
        pipeline.vae.decoder.mid_block.resnets[0].conv2.weight.mul_(500_000)
    quiet, loud = (
        1e-3 * torch.ones(1, 3, 4, 4),
        torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
    )
    images = pipeline.decode_latents(torch.cat([loud, quiet, loud]))
    assert torch.equal(images[0], images[2]) and images[0].float().std() > 1
    full = copy.deepcopy(pipeline.vae).float()
    with torch.inference_mode():
        assert not torch.isfinite(pipeline.vae.decode(loud.half() / 0.5).sample).all()
        exact = (full.decode(loud / 0.5).sample / 2 + 0.5).clamp(0, 1) * 255
    assert torch.equal(images[:1].permute(0, 3, 1, 2), exact.to(torch.uint8))
    assert caplog.text.count("the VAE overflows in torch.float16") == 1
    assert pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_in_float32_either_is_no_image(tiny_pipeline, value):
    with pytest.raises(NotFiniteError, match="must decode latents to finite pixels"):
        tiny_pipeline.decode_latents(torch.full((1, 3, 4, 4), value))
