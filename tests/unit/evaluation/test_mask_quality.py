import numpy as np
import pytest

from mflight.evaluation.mask_quality import compare_masks

IMAGE = np.zeros((10, 12, 3), np.uint8)


def rectangle(x1, y1, x2, y2):
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[y1:y2, x1:x2] = True
    return mask


def upper_half(image, boxes):
    """A segmenter that finds the upper half of each box."""
    return np.stack([rectangle(x1, y1, x2, (y1 + y2) // 2) for x1, y1, x2, y2 in boxes.tolist()])


def triangle():
    """Half of the box (2, 2, 6, 6): 10 pixels, 7 of them in its lower half."""
    return np.pad(np.tri(4, dtype=bool), ((2, 4), (2, 6)))


def test_hand_worked_agreement_by_class():
    """A whole box agrees to 1/2; the triangle shares 3 of its 10 pixels with the 8 of the half: 3/15."""
    images = [
        (IMAGE, np.stack([rectangle(0, 0, 4, 6), triangle()]), [7, 7]),
        (IMAGE, np.stack([rectangle(1, 1, 5, 5), np.zeros((10, 12), bool)]), [3, 7]),
        (IMAGE, np.zeros((0, 10, 12), bool), []),
    ]
    quality = compare_masks(images, upper_half)
    assert quality.num_images == 3 and quality.num_instances == 3
    assert quality.compute()["mIoU"] == pytest.approx(100 * (0.5 + 0.2 + 0.5) / 3)
    assert quality.compute()["mIoU_class"] == pytest.approx(100 * (0.35 + 0.5) / 2)
    assert quality.per_class() == [
        {"category_id": 3, "num_instances": 1, "mIoU": pytest.approx(50.0)},
        {"category_id": 7, "num_instances": 2, "mIoU": pytest.approx(35.0)},
    ]


def test_nothing_to_compare_gives_minus_one():
    assert compare_masks([], upper_half).compute() == {"mIoU": -1.0, "mIoU_class": -1.0}


def test_faulty_numbers_are_told():
    masks = rectangle(0, 0, 4, 6)[None]
    with pytest.raises(ValueError, match="image 0 has 1 masks and 2 ids"):
        compare_masks([(IMAGE, masks, [1, 2])], upper_half)
    with pytest.raises(ValueError, match=r"shape \(1, 10, 12\), got \(1, 5, 5\)"):
        compare_masks([(IMAGE, masks, [1])], lambda image, boxes: np.zeros((1, 5, 5), bool))
