import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from mflight.diffusion.pipeline import load_pipeline
from mflight.diffusion.tokens import tokenize_plain


def copy_with_index(checkpoint, folder, **changes):
    shutil.copytree(checkpoint, folder)
    index = json.loads((folder / "model_index.json").read_text()) | changes
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_sizes_come_from_the_checkpoint(tiny_pipeline):
    assert tiny_pipeline.latent_stride_px == 4
    assert tiny_pipeline.latent_channels == 3
    assert tiny_pipeline.max_prompt_tokens == 32
    assert tiny_pipeline.dtype == torch.float32


def test_text_is_encoded_as_stock_diffusers_does(tiny_checkpoint, tiny_pipeline):
    stock = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    expected, _ = stock.encode_prompt("a photo of a cup", "cpu", 1, do_classifier_free_guidance=False)
    ids = tokenize_plain(tiny_pipeline.tokenizer, "a photo of a cup", max_length=32)
    torch.testing.assert_close(tiny_pipeline.encode_text(ids), expected[0])
    assert tiny_pipeline.encode_text(ids) is tiny_pipeline.encode_text(ids)


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
    assert load_pipeline(str(tiny_checkpoint), dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'int8'"):
        load_pipeline(str(tiny_checkpoint), dtype="int8")


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


@pytest.mark.parametrize("family", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_other_families_are_refused(tiny_checkpoint, tmp_path, family):
    with pytest.raises(ValueError, match=f"got '{family}'"):
        load_pipeline(str(copy_with_index(tiny_checkpoint, tmp_path / "other", _class_name=family)))


def test_scheduler_and_setting_that_do_not_exist_are_refused(tiny_checkpoint):
    for wrong in ("NoSuchScheduler", "UNet2DConditionModel"):
        with pytest.raises(ValueError, match=f"got '{wrong}'"):
            load_pipeline(str(tiny_checkpoint), scheduler=wrong)
    with pytest.raises(ValueError, match="DDIMScheduler has no setting 'order'"):
        load_pipeline(str(tiny_checkpoint), scheduler_settings={"order": 2})
