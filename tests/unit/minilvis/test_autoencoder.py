import numpy as np
import pytest
import torch

from mflight.minilvis.autoencoder import (
    NUM_CHANNELS,
    STRIDE_PX,
    build_autoencoder,
    crop_batches,
    encode_patches,
    to_unit,
)
from mflight.minilvis.training_scenes import draw_captioned_scene


def scenes(count, seed):
    draws = np.random.default_rng(seed)
    return to_unit(np.stack([draw_captioned_scene((64, 64), draws)[0].image for _ in range(count)]))


def test_images_become_numbers_between_minus_one_and_one():
    images = to_unit(np.array([[[[0, 255, 51]]]], dtype=np.uint8))
    assert images.shape == (1, 3, 1, 1)
    assert images.flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])


def test_codes_of_unseen_scenes_have_unit_variance_and_no_mean():
    codes = encode_patches(scenes(60, seed=5))
    assert codes.shape == (60, NUM_CHANNELS, 16, 16)
    assert codes.std().item() == pytest.approx(1.0, abs=0.1)
    assert codes.mean().abs().item() < 0.1


def test_a_code_depends_on_its_own_patch_alone():
    images = scenes(1, seed=6)
    changed = images.clone()
    changed[..., 8:12, 4:8] = 0.0
    differs = (encode_patches(images) != encode_patches(changed)).any(dim=1)[0]
    assert torch.nonzero(differs).tolist() == [[2, 1]]


def test_latents_have_the_stride_and_the_channels_of_the_codes():
    torch.manual_seed(0)
    autoencoder = build_autoencoder().eval()
    latents = autoencoder.encode(torch.zeros(1, 3, 48, 64)).latent_dist.mode()
    assert latents.shape == (1, NUM_CHANNELS, 48 // STRIDE_PX, 64 // STRIDE_PX)
    assert autoencoder.decode(latents).sample.shape == (1, 3, 48, 64)
    assert autoencoder.config.scaling_factor == 1.0


def test_crops_are_a_function_of_the_seed():
    first, again, other = (next(crop_batches(6, seed)) for seed in (0, 0, 1))
    assert first.shape == (6, 3, 32, 32) and first.abs().max() <= 1.0
    assert torch.equal(first, again) and not torch.equal(first, other)
