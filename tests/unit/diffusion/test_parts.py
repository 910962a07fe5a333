"""Checkpoints as people have them: variants, lost or renamed weights, parts that are not its own."""

import json
import logging
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import T5Config

from mflight.diffusion.pipeline import load_pipeline
from tests.unit.diffusion.checkpoint_index import copy_with_index
from tests.unit.diffusion.tiny_checkpoint import WORDS, word_tokenizer

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
DEVICES = ("meta", "cpu")  # the look before, and the load: one is not to know less than the other


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return copy_with_index(tiny_checkpoint, tmp_path / "sd")


def weights_of(checkpoint, part):
    return checkpoint / part / FILES[part]


def rewrite(path, change):
    """Replace the weights by ``change`` of their dictionary."""
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_look_reads_no_weights(checkpoint):
    for part, name in FILES.items():  # the headers stay, what is behind them becomes what is no number
        path = checkpoint / part / name
        rewrite(path, lambda state: {key: torch.full_like(value, torch.nan) for key, value in state.items()})
    pipeline = load_pipeline(str(checkpoint), device="meta")
    assert {model.device.type for model in (pipeline.unet, pipeline.vae, *pipeline.text.text_encoders)} == {
        "meta"
    }
    with pytest.raises(ValueError, match="text_encoder must have finite weights, embeddings"):
        load_pipeline(str(checkpoint))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("part", "old", "new", "message"),
    [
        ("unet", "to_q.", "to_q.base_layer.", r"unet must have all .* such as .*to_q\.weight.*base_layer"),
        ("text_encoder", "", "cond_stage_model.", "text_encoder must have all .* it has cond_stage_model"),
        ("vae", "decoder.conv_out.", "decoder.last.", r"lacks 2 of them, such as decoder\.conv_out\.bias"),
    ],
)
def test_renamed_weights_are_refused_with_their_part_and_first_keys(
    checkpoint, part, old, new, message, device
):
    path = weights_of(checkpoint, part)
    rewrite(
        path,
        lambda state: {key.replace(old, new, 1) if old else new + key: value for key, value in state.items()},
    )
    with pytest.raises(ValueError, match=message):
        load_pipeline(str(checkpoint), device=device)


def test_missing_weights_are_counted(checkpoint):
    rewrite(
        weights_of(checkpoint, "unet"), lambda state: {k: v for k, v in state.items() if "mid_block" not in k}
    )
    with pytest.raises(ValueError, match=r"unet must have all of its \d+ weights, .* lacks \d+ .*mid_block"):
        load_pipeline(str(checkpoint), device="meta")


def test_a_weight_of_another_shape_is_refused(checkpoint):
    def narrow(state):
        return {key: value[:4].clone() if key == "conv_in.bias" else value for key, value in state.items()}

    rewrite(weights_of(checkpoint, "unet"), narrow)
    with pytest.raises(
        ValueError, match=r"unet wants conv_in\.bias of shape \[8\], .* has it of shape \[4\]"
    ):
        load_pipeline(str(checkpoint), device="meta")


def test_weights_that_are_left_out_are_told(checkpoint, caplog):
    path = weights_of(checkpoint, "unet")
    rewrite(path, lambda state: {**state, "conv_in.lora.up.weight": torch.zeros(2)})
    with caplog.at_level(logging.WARNING):
        load_pipeline(str(checkpoint), device="meta")
    assert "unet: 1 weights in" in caplog.text and "conv_in.lora.up.weight" in caplog.text


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_keys_of_a_tower_with_and_without_its_prefix_are_the_same(checkpoint, tiny_pipeline, prefix):
    def rename(state):
        plain = {key.removeprefix("text_model."): value for key, value in state.items()}
        return {prefix + key: value for key, value in plain.items()}

    rewrite(weights_of(checkpoint, "text_encoder"), rename)
    ours = load_pipeline(str(checkpoint)).text.encode_negative("a cup")
    torch.testing.assert_close(ours.prompt_embeds, tiny_pipeline.text.encode_negative("a cup").prompt_embeds)


def test_a_checkpoint_of_half_precision_variants_alone_is_loaded(checkpoint, tiny_pipeline):
    for part, name in FILES.items():
        path = checkpoint / part / name
        rewrite(path, lambda state: {key: value.half() for key, value in state.items()})
        path.rename(path.with_name(name.replace(".safetensors", ".fp16.safetensors")))
    pipeline = load_pipeline(str(checkpoint))
    assert pipeline.dtype == torch.float32
    for ours, theirs in zip(pipeline.unet.parameters(), tiny_pipeline.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


def test_what_is_loaded_is_what_the_hash_covers(checkpoint):
    plain = load_pipeline(str(checkpoint)).weights_sha256
    unet = weights_of(checkpoint, "unet")
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model.bin"))
    assert load_pipeline(str(checkpoint)).weights_sha256 == plain


def test_weights_of_torch_are_loaded(checkpoint, tiny_pipeline):
    unet = weights_of(checkpoint, "unet")
    torch.save(load_file(unet), unet.with_suffix(".bin"))
    unet.unlink()
    for device in DEVICES:
        pipeline = load_pipeline(str(checkpoint), device=device)
    assert torch.equal(pipeline.unet.conv_in.weight, tiny_pipeline.unet.conv_in.weight)


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_file_that_holds_no_weights_is_named_with_its_size(checkpoint, content, suffix):
    path = weights_of(checkpoint, "vae")
    path.unlink()
    path.with_suffix(suffix).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"vae/.*{suffix}' must hold the weights of a model, its {len(content)} bytes"
    ):
        load_pipeline(str(checkpoint))


def test_a_part_in_ckpt_files_alone_is_told_with_what_is_there(checkpoint):
    path = weights_of(checkpoint, "vae")
    path.rename(path.with_name("vae-ft-mse.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"vae must hold weights named as .*'vae-ft-mse\.ckpt'"):
        load_pipeline(str(checkpoint))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("names", ["file", "relative", "folder"])
def test_a_checkpoint_in_one_file_is_refused_with_the_way_to_convert_it(tmp_path, monkeypatch, suffix, names):
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / f"v1-5{suffix}"
    file.write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    place = {"file": file, "relative": f"models/v1-5{suffix}", "folder": tmp_path / "models"}[names]
    with pytest.raises(ValueError, match=rf"v1-5{suffix}' holds all parts in one file.*from_single_file\('"):
        load_pipeline(str(place))


def test_one_file_that_is_not_there_is_not_looked_for_on_the_hub():
    with pytest.raises(FileNotFoundError, match=r"no file 'models/lost\.safetensors'"):
        load_pipeline("models/lost.safetensors")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_in_index", [True, False])
def test_a_tiny_vae_is_refused_by_its_class(tiny_checkpoint, tmp_path, is_in_index, device):
    named = "AutoencoderTiny" if is_in_index else "AutoencoderKL"
    checkpoint = copy_with_index(tiny_checkpoint, tmp_path / "sd", vae=["diffusers", named])
    shutil.rmtree(checkpoint / "vae")
    AutoencoderTiny(latent_channels=3).save_pretrained(checkpoint / "vae")
    with pytest.raises(ValueError, match=r"vae must be a AutoencoderKL.*AutoencoderTiny"):
        load_pipeline(str(checkpoint), device=device)


def test_a_text_encoder_of_another_kind_is_refused(checkpoint):
    T5Config(d_model=16).save_pretrained(checkpoint / "text_encoder")
    with pytest.raises(ValueError, match=r"text_encoder must be a CLIPTextModel.* says t5"):
        load_pipeline(str(checkpoint))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"in_channels": 9},
            r"in_channels must be the VAE's latent_channels \(an inpainting .*\), 3, got 9 in",
        ),
        ({"out_channels": 6}, "out_channels must be the VAE's latent_channels, 3, got 6"),
        (
            {"cross_attention_dim": 24},
            "cross_attention_dim must be the width of the text encoder, 16, got 24",
        ),
        ({"num_class_embeds": 10}, "num_class_embeds must be unset .*, got 10"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(checkpoint, tiny_pipeline, change, message, device):
    UNet2DConditionModel.from_config({**tiny_pipeline.unet.config, **change}).save_pretrained(
        checkpoint / "unet"
    )
    with pytest.raises(ValueError, match=message):
        load_pipeline(str(checkpoint), device=device)


def test_a_tokenizer_larger_than_its_encoder_is_refused(checkpoint):
    shutil.rmtree(checkpoint / "tokenizer")
    tokenizer = word_tokenizer(checkpoint / "tokenizer", model_max_length=32, words=(*WORDS, "zebra", "gnu"))
    size = json.loads((checkpoint / "text_encoder" / "config.json").read_text())["vocab_size"]
    with pytest.raises(
        ValueError, match=rf"tokenizer must have at most .* embeddings, {size}, got {len(tokenizer)}"
    ):
        load_pipeline(str(checkpoint), device="meta")
