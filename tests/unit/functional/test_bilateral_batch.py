"""The batched solver gives what the CPU one gives, region by region, for sizes and masks of any kind."""

import numpy as np
import pytest
import torch

from mflight.functional.bilateral import BilateralSettings, refine_mask
from mflight.functional.bilateral_batch import refine_masks
from tests.reference import REFERENCE

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])]


def noisy_region(size_hw: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright half on a dark ground with noise, and a mask that is off by some pixels."""
    draws = np.random.default_rng(seed)
    mask = np.zeros(size_hw, dtype=bool)
    mask[:, size_hw[1] // 2 :] = True
    image = np.where(mask[..., None], [180, 90, 60], [70, 60, 120]) + draws.normal(0, 12, (*size_hw, 3))
    return image.clip(0, 255).astype(np.uint8), np.roll(mask, 3, axis=1)


def assert_equal_to_single(regions: list, settings: BilateralSettings, device: str = "cpu") -> None:
    images, masks = (
        [torch.from_numpy(array).to(device) for array in arrays] for arrays in zip(*regions, strict=True)
    )
    refined, softs = refine_masks(images, masks, 2, settings)
    for (image, mask), ours, soft in zip(regions, refined, softs, strict=True):
        expected, expected_softs = refine_mask(image, mask, 2, settings)
        np.testing.assert_array_equal(ours.cpu().numpy(), expected)
        np.testing.assert_allclose(soft.cpu().numpy(), expected_softs, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_outputs_of_the_published_program(device):
    paths = sorted(REFERENCE.glob("bilateral*.npz"))
    if not paths:
        pytest.skip(f"no bilateral*.npz in {REFERENCE}")
    cases = [dict(np.load(path)) for path in paths]
    unpack = {name: [] for name in ("coarse", "mask")}
    for case in cases:
        shape = tuple(case["shape"])
        for name, arrays in unpack.items():
            arrays.append(np.unpackbits(case[name], count=np.prod(shape)).reshape(shape).astype(bool))
    images = [torch.from_numpy(case["image"]).to(device) for case in cases]
    refined, softs = refine_masks(images, [torch.from_numpy(mask).to(device) for mask in unpack["coarse"]])
    for case, expected, ours, soft in zip(cases, unpack["mask"], refined, softs, strict=True):
        np.testing.assert_array_equal(ours.cpu().numpy(), expected)
        published = np.stack([case["soft1"], case["soft2"]])
        np.testing.assert_allclose(soft.cpu().numpy(), published, atol=1e-5 * 255)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "settings",
    [
        BilateralSettings(),
        BilateralSettings(sigma_spatial_px=5.3, sigma_luma=11.7, sigma_chroma=3.0),
        BilateralSettings(blur_self_weight=4.0, num_bistochastize_steps=3),
    ],
)
def test_regions_of_different_sizes_are_those_of_the_single_solver(device, settings):
    regions = [
        noisy_region(size_hw, seed) for seed, size_hw in enumerate([(40, 50), (64, 33), (1, 1), (17, 80)])
    ]
    assert_equal_to_single(regions, settings, device)


def test_regions_that_converge_early_stand_still():
    fast, _ = noisy_region((40, 40), seed=0)
    regions = [
        (fast, np.zeros((40, 40), dtype=bool)),
        (fast, np.ones((40, 40), dtype=bool)),
        (np.zeros((48, 48, 3), dtype=np.uint8), noisy_region((48, 48), seed=1)[1]),
        noisy_region((60, 40), seed=2),
    ]
    assert_equal_to_single(regions, BilateralSettings(tolerance=1e-3))


def test_no_pass_and_no_region():
    image, mask = (torch.from_numpy(array) for array in noisy_region((20, 24), seed=0))
    refined, softs = refine_masks([image], [mask], num_passes=0)
    assert torch.equal(refined[0], mask) and softs[0].shape == (0, 20, 24)
    assert refine_masks([], []) == ([], [])


def test_errors_name_the_value():
    image, mask = (torch.from_numpy(array) for array in noisy_region((20, 24), seed=0))
    with pytest.raises(ValueError, match="got 2 images and 1 masks"):
        refine_masks([image, image], [mask])
    with pytest.raises(ValueError, match=r"image 1 must be uint8\[H, W, 3\], got torch.float32\[20, 24, 3\]"):
        refine_masks([image, image.float()], [mask, mask])
    with pytest.raises(ValueError, match=r"mask 0 must be \[20, 24\], got \[10, 24\]"):
        refine_masks([image], [mask[:10]])
