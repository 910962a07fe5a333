import pytest
import torch

from mflight.data.copy_paste import CopyPasteDataset, SimpleCopyPaste
from tests.unit.data.test_paste import HEIGHT, WIDTH, make_target

ALL = [(0, 0, 3, 3), (4, 0, 7, 3), (8, 0, 11, 3), (12, 0, 15, 3)]


class Real:
    """Image ``i`` has the value ``i`` everywhere and four instances of label ``i + 1``."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.full((3, HEIGHT, WIDTH), float(index)), make_target(ALL, [index + 1] * 4)


def samples(**settings):
    dataset = CopyPasteDataset(Real(), SimpleCopyPaste(**{"min_area_px": 1, **settings}))
    for seed in range(60):
        torch.manual_seed(seed)
        yield dataset[0]


@pytest.mark.parametrize(("max_instances", "choices", "limit"), [(2, 3, 13.8), (100, 5, 18.5)])
def test_the_number_of_pasted_instances_is_uniform_and_capped(max_instances, choices, limit):
    copy_paste = SimpleCopyPaste(min_area_px=1, max_instances=max_instances)
    empty, full = torch.zeros((3, HEIGHT, WIDTH)), torch.ones((3, HEIGHT, WIDTH))
    torch.manual_seed(0)
    counts = torch.zeros(choices)
    for _ in range(400):
        image, target = copy_paste(empty, make_target([], []), full, make_target(ALL, [1, 2, 3, 4]))
        assert image[0].sum() == 9 * len(target["labels"])
        counts[len(target["labels"])] += 1  # an error beyond the cap
    expected = 400 / choices
    assert ((counts - expected) ** 2 / expected).sum() < limit  # chi-square, p = 0.001


def test_what_is_pasted_shows_at_its_mask_and_carries_its_label():
    for image, target in samples(probability=1.0):
        shown = image[0].int() + 1
        for label, mask in zip(target["labels"].tolist(), target["masks"], strict=True):
            assert (shown[mask == 1] == label).all()


def test_probability_is_the_share_of_images_that_are_touched():
    assert all((image == 0).all() for image, _ in samples(probability=0.0))
    touched = sum(bool((image > 0).any()) for image, _ in samples(probability=0.5))
    # of 60 images half get another one, 2/3 of these of another value, 4/5 of these at least one instance
    assert 8 <= touched <= 26  # 16 expected, standard deviation 3.4


def test_the_random_state_fixes_it():
    for (image, target), (again, same) in zip(samples(), samples(), strict=True):
        assert torch.equal(image, again) and torch.equal(target["masks"], same["masks"])


def test_a_larger_image_gives_the_part_that_fits():
    large = torch.ones((3, 2 * HEIGHT, 3 * WIDTH))
    target = {
        **make_target([], []),
        "labels": torch.tensor([4]),
        "masks": torch.ones((1, 24, 48), dtype=torch.uint8),
    }
    copy_paste = SimpleCopyPaste(min_visible_ratio=0.1)
    seen = set()
    for seed in range(10):
        torch.manual_seed(seed)
        image, pasted = copy_paste(torch.zeros((3, HEIGHT, WIDTH)), make_target([], []), large, target)
        seen.add(tuple(pasted["labels"].tolist()))
        assert image.shape == (3, HEIGHT, WIDTH) and image.sum() in (0, image.numel())
    assert seen == {(), (4,)}


def test_faulty_settings_are_refused():
    with pytest.raises(ValueError, match="probability"):
        SimpleCopyPaste(probability=1.5)
