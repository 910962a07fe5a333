"""Heat maps and thresholds: Pillow and Otsu's definition as references, hand-made maps, published outputs."""

import numpy as np
import pytest
import torch
from PIL import Image

from mflight.functional.attention import (
    attention_to_heat_map,
    attention_to_heat_maps,
    heat_map_to_mask,
    otsu_threshold,
    resize_bicubic_8bit,
)
from tests.reference import REFERENCE


def published_heat_map(maps: list[torch.Tensor], region_hw: tuple[int, int]) -> np.ndarray:
    """The published order of work, in float32 with Pillow."""
    resized = []
    for values in maps:
        gray = Image.fromarray((values / values.max() * 255).numpy().astype(np.uint8))
        resized.append(np.asarray(gray.resize(region_hw[::-1], Image.Resampling.BICUBIC)) / np.float32(255))
    mean = np.mean(resized, axis=0)
    return (mean / mean.max() * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("size_hw", "new_hw"),
    [((48, 64), (384, 512)), ((12, 16), (240, 248)), ((15, 20), (7, 9)), ((8, 8), (8, 8)), ((1, 1), (5, 3))],
)
def test_resizing_gives_the_bits_of_pillow(size_hw, new_hw):
    images = np.random.default_rng(0).integers(0, 256, (2, *size_hw), dtype=np.uint8)
    resized = resize_bicubic_8bit(torch.from_numpy(images), new_hw).numpy()
    for image, ours in zip(images, resized, strict=True):
        theirs = Image.fromarray(image).resize(new_hw[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_heat_map_is_the_published_one_within_a_level():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(size_hw, generator=generator) ** 4 for size_hw in [(30, 41), (15, 21), (8, 11)]]
    heat_map = attention_to_heat_map(maps, (240, 328)).numpy()
    assert heat_map.shape == (240, 328) and heat_map.dtype == np.uint8 and heat_map.max() == 255
    assert np.abs(heat_map.astype(int) - published_heat_map(maps, (240, 328))).max() <= 1


def test_batch_gives_the_bits_of_the_single_regions():
    generator = torch.Generator().manual_seed(1)
    maps = [torch.rand(3, *size_hw, generator=generator) for size_hw in [(12, 16), (6, 8)]]
    batch = attention_to_heat_maps(maps, (96, 128))
    for index in range(3):
        single = attention_to_heat_map([values[index] for values in maps], (96, 128))
        assert torch.equal(batch[index], single)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scale_of_the_attention_does_not_matter(dtype):
    values = torch.tensor([[1.0, 0.5], [0.25, 0.0]])
    expected = attention_to_heat_map([values], (8, 8))
    assert torch.equal(attention_to_heat_map([(values * 2**-10).to(dtype)], (8, 8)), expected)


def test_no_attention_gives_an_empty_mask():
    heat_map = attention_to_heat_map([torch.zeros(4, 4), torch.zeros(2, 2)], (16, 16))
    assert heat_map.max() == 0
    assert not heat_map_to_mask(heat_map).any()
    assert not heat_map_to_mask(heat_map, threshold=0.2).any()


def test_a_resolution_without_attention_is_part_of_the_mean():
    values = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    alone = attention_to_heat_map([values], (2, 2))
    assert torch.equal(attention_to_heat_map([values, torch.zeros(2, 2)], (2, 2)), alone)


def test_otsu_is_the_first_best_level_by_definition():
    for seed in range(5):
        image = np.random.default_rng(seed).choice([3, 9, 40, 41, 200, 255], size=(9, 7)).astype(np.uint8)
        variances = []
        for level in range(256):
            low, high = image[image <= level], image[image > level]
            product = low.size * high.size
            variances.append(product * (low.mean() - high.mean()) ** 2 if product else 0.0)
        best = np.flatnonzero(np.isclose(variances, max(variances), rtol=1e-12))[0]
        assert otsu_threshold(torch.from_numpy(image)).item() == best


def test_otsu_of_two_values_and_of_one():
    assert otsu_threshold(torch.tensor([[7, 7, 90]], dtype=torch.uint8)).item() == 7
    assert otsu_threshold(torch.full((3, 3), 200, dtype=torch.uint8)).item() == 0
    both = torch.stack([torch.full((1, 3), 200), torch.tensor([[7, 7, 90]])]).to(torch.uint8)
    assert otsu_threshold(both).tolist() == [0, 7]


def test_fixed_threshold_is_a_share_of_the_full_range():
    heat_map = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    assert heat_map_to_mask(heat_map, threshold=0.4).sum() == 255 - 102


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="attention_maps is empty"):
        attention_to_heat_map([], (4, 4))
    with pytest.raises(ValueError, match=r"attention_maps\[1\] must be a non-empty .* got shape \(2, 0, 3\)"):
        attention_to_heat_maps([torch.rand(2, 4, 4), torch.rand(2, 0, 3)], (4, 4))
    with pytest.raises(ValueError, match=r"same number of regions, got \[2, 3\]"):
        attention_to_heat_maps([torch.rand(2, 4, 4), torch.rand(3, 2, 2)], (4, 4))
    with pytest.raises(ValueError, match=r"'otsu' or lie in \(0, 1\), got 1\.5"):
        heat_map_to_mask(torch.zeros(2, 2, dtype=torch.uint8), threshold=1.5)
    with pytest.raises(ValueError, match="got 'triangle'"):
        heat_map_to_mask(torch.zeros(2, 2, dtype=torch.uint8), threshold="triangle")
    with pytest.raises(ValueError, match=r"uint8\[\.\.\., H, W\], got torch.float32\[2, 2\]"):
        otsu_threshold(torch.zeros(2, 2))


@pytest.mark.parametrize("case", sorted(REFERENCE.glob("case*.npz")), ids=lambda path: path.stem)
def test_otsu_masks_of_the_published_program(case):
    with np.load(case) as arrays:
        heat_maps = {name[4:]: arrays[name] for name in arrays.files if name.startswith("heat")}
        bits = {region: arrays[f"mask{region}"] for region in heat_maps}
    for region, heat_map in heat_maps.items():
        expected = np.unpackbits(bits[region], count=heat_map.size).reshape(heat_map.shape).astype(bool)
        np.testing.assert_array_equal(heat_map_to_mask(torch.from_numpy(heat_map)).numpy(), expected)
