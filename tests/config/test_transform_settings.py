"""The train transforms of the LVIS configs, at their real sizes."""

import torch
from hydra.utils import instantiate

from tests.config.test_configs import RUNTIME, compose_with
from tests.unit.data.test_transforms import make_sample


def sizes_hw(name, num_draws, sample):
    """Return ``(H, W)`` of some draws of a transform."""
    cfg = compose_with([*RUNTIME, "experiment=lvis_baseline", f"data/transform={name}"])
    transform = instantiate(cfg.data.transform, _convert_="all")
    sizes = []
    for seed in range(num_draws):
        torch.manual_seed(seed)
        sizes.append(tuple(transform(*sample)[0].shape[1:]))
    return sizes


def test_multi_scale_draws_one_of_six_short_sides():
    sizes = sizes_hw("multi_scale", 40, make_sample([(2, 3, 9, 8)]))  # of 20 x 30 px
    assert {min(size) for size in sizes} == {640, 672, 704, 736, 768, 800}
    assert all(abs(width - 1.5 * height) <= 1 for height, width in sizes)


def test_multi_scale_caps_the_long_side():
    image, target, outlines = make_sample([(2, 3, 9, 8)])
    ((height, width),) = sizes_hw("multi_scale", 1, (image[:, :10], target, outlines))
    assert (height, width) == (444, 1333)  # 640 to 800 px would be 1920 to 2400 wide


def test_large_scale_jitter_goes_from_a_tenth_to_the_double():
    settings = compose_with([*RUNTIME, "experiment=lvis_baseline", "data/transform=large_scale_jitter"])
    assert settings.data.transform.jitter_range == [0.1, 2.0]
    assert settings.data.transform.crop_hw == [1024, 1024]
    sizes = sizes_hw("large_scale_jitter", 20, make_sample([(2, 3, 9, 8)]))
    widths = [width for _, width in sizes]  # 1024 at a factor of 1, at which the height is 683
    assert 102 <= min(widths) < 307 and max(widths) == 1024  # an eighth of all factors lies below 0.3
    assert max(height for height, _ in sizes) == 1024  # a factor of 1.5
