import torch

from mflight.minilvis.autoencoder import build_autoencoder, crop_batches
from mflight.minilvis.patch_codes import NUM_CHANNELS, STRIDE_PX


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
