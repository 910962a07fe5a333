from statistics import median

import pytest
import torch

from mflight.data.downscale import RandomDownscale, downscale
from mflight.data.target import check_target


def make_sample(ignore_boxes=()):
    """An image 8 x 12 with two instances: 4 x 6 px at (2, 2) and 2 x 1 px at (10, 5)."""
    image = torch.zeros(3, 8, 12)
    masks = torch.zeros((2, 8, 12), dtype=torch.uint8)
    masks[0, 2:6, 2:8] = 1
    masks[1, 5:6, 10:12] = 1
    image[:, 2:6, 2:8] = 1.0
    return image, {
        "boxes": torch.tensor([[2.0, 2, 8, 6], [10, 5, 12, 6]]),
        "labels": torch.tensor([4, 7]),
        "masks": masks,
        "image_id": -3,
        "area": torch.tensor([24.0, 2.0]),
        "iscrowd": torch.zeros(2, dtype=torch.int64),
        "is_synthetic": True,
        "negative_labels": torch.zeros(0, dtype=torch.int64),
        "not_exhaustive_labels": torch.tensor([5]),
        "ignore_boxes": torch.tensor(ignore_boxes, dtype=torch.float32).reshape(-1, 4),
        "sample_id": "7-00000002",
    }


def test_half_size_by_hand():
    image, target = downscale(*make_sample([(0, 0, 12, 3)]), scale=0.5, min_area_px=1)
    check_target(target, (4, 6), num_classes=9)
    assert image.shape == (3, 4, 6)
    assert target["boxes"].tolist() == [[1, 1, 4, 3], [5, 2, 6, 3]]  # of the second half a pixel is covered
    assert target["area"].tolist() == [6, 1]
    assert target["ignore_boxes"].tolist() == [[0, 0, 6, 1.5]]
    assert target["not_exhaustive_labels"].tolist() == [5]


def test_an_instance_that_is_too_small_is_ignored_and_its_class_not_exhaustive():
    _, target = downscale(*make_sample([(0, 0, 12, 3)]), scale=0.5, min_area_px=2)
    check_target(target, (4, 6), num_classes=9)
    assert target["labels"].tolist() == [4] and target["masks"].shape == (1, 4, 6)
    assert target["ignore_boxes"].tolist() == [[0, 0, 6, 1.5], [5, 2.5, 6, 3]]
    assert target["not_exhaustive_labels"].tolist() == [5, 7]
    bare = downscale(*make_sample(), scale=0.5, min_area_px=100)[1]
    check_target(bare, (4, 6), num_classes=9)
    assert len(bare["labels"]) == 0 and len(bare["ignore_boxes"]) == 2


def test_sides_are_rounded_and_boxes_follow_each_side():
    image, target = downscale(*make_sample([(6, 4, 12, 8)]), scale=0.3, min_area_px=1)
    assert image.shape == (3, 2, 4)  # 2.4 and 3.6
    assert target["ignore_boxes"][0].tolist() == [2, 1, 4, 2]
    check_target(target, (2, 4), num_classes=9)
    assert downscale(*make_sample(), scale=0.01, min_area_px=1)[0].shape == (3, 1, 1)


def test_the_image_is_antialiased_and_keeps_its_mean():
    stripes = torch.tensor([0.0, 1.0]).repeat(32)[None, None].expand(3, 64, 64)  # one pixel each
    sample = make_sample()[1] | {"masks": torch.ones((2, 64, 64), dtype=torch.uint8)}
    inner = downscale(stripes, sample, scale=0.5, min_area_px=1)[0][:, 4:-4, 4:-4]
    assert (inner - 0.5).abs().max() < 0.2  # sampled without a filter they would be 0 and 1


def test_factors_are_log_uniform_within_their_range_and_a_function_of_the_seed():
    sample = make_sample()[1] | {"masks": torch.ones((2, 200, 2), dtype=torch.uint8)}
    transform = RandomDownscale(scale_range=(0.25, 1.0))

    def draw(seed):
        torch.manual_seed(seed)
        return transform(torch.zeros(3, 200, 2), sample)[0].shape[1] / 200

    factors = [draw(seed) for seed in range(80)]
    assert 0.25 <= min(factors) < 0.3 and 0.9 < max(factors) <= 1.0
    assert median(factors) == pytest.approx(0.5, abs=0.09)  # a uniform one: 0.625
    assert draw(3) == factors[3]


def test_a_range_of_one_changes_and_draws_nothing():
    image, target = make_sample()
    state = torch.get_rng_state()
    same_image, same_target = RandomDownscale()(image, target)
    assert same_image is image and same_target is target
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_range": (0.8, 0.5)}, r"must rise, got \(0.8, 0.5\)"),
        ({"scale_range": (0.0, 0.5)}, r"greater than 0 .*input_value=0.0"),
        ({"scale_range": (0.5, 2.0)}, r"less than or equal to 1 .*input_value=2.0"),
        ({"min_area_px": 0}, "input_value=0"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomDownscale(**settings)
