import numpy as np
import pytest
import torch

from mflight.data.instance_paste import ClassScales, InstancePaste
from mflight.data.slots import Slot, SlotDataset
from mflight.data.target import check_target
from tests.unit.data.test_paste import make_target, rectangle_masks

SIDE = 100


def real_sample():
    target = make_target([], [], negative=[2])
    return torch.zeros((3, SIDE, SIDE)), {**target, "masks": torch.zeros((0, SIDE, SIDE), dtype=torch.uint8)}


def synthetic_sample(labels=(2,)):
    """An image of 40 x 40 px whose instances are white squares of 20 x 20 px, side by side."""
    boxes = [(20 * i, 10, 20 * i + 20, 30) for i in range(len(labels))]
    masks = rectangle_masks(boxes, (40, 40))
    image = (masks.amax(dim=0) * 255).expand(3, -1, -1)
    changes = {"masks": masks, "is_synthetic": True, "sample_id": "7-1", "image_id": -2}
    return image, {**make_target([], []), **changes, "labels": torch.tensor(labels)}


def fixed_scales(scale, num_classes=3):
    labels = np.repeat(np.arange(1, num_classes + 1), 2)
    return ClassScales(labels, np.full(len(labels), scale), num_classes)


def test_scales_by_hand():
    # class 1: 0.1, 0.3: mean 0.2, spread 0.1, relative 0.5; class 2: 0.4 once; class 3: none, the mean of all
    scales = ClassScales(np.array([1, 1, 2]), np.array([0.1, 0.3, 0.4]), num_classes=3)
    assert scales.mean[1:].tolist() == pytest.approx([0.2, 0.4, 0.8 / 3])
    assert scales.spread[1:].tolist() == pytest.approx([0.1, 0.2, 0.4 / 3])
    torch.manual_seed(0)
    drawn = [scales.draw(1) for _ in range(300)]
    assert 0.05 <= min(drawn) < 0.08 and 0.32 < max(drawn) <= 0.4 + 1e-9
    assert np.mean(drawn) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(("scale", "side"), [(0.1, 10), (0.3, 30), (0.9, 40)])
def test_an_instance_gets_the_scale_of_its_class(scale, side):
    # sqrt(side ** 2 / 100 ** 2) = scale; 0.9 would take a factor of 4.5, 2 is the largest
    paste = InstancePaste(scales=fixed_scales(scale), feather_px=0.0, max_enlargement=2.0)
    for seed in range(5):
        torch.manual_seed(seed)
        image, target = paste(real_sample(), synthetic_sample())
        check_target(target, (SIDE, SIDE), num_classes=3)
        assert target["area"].tolist() == [side**2] and target["labels"].tolist() == [2]
        assert torch.equal(image[0].round(), target["masks"][0].float())


def test_the_sample_counts_as_synthetic_and_keeps_the_image_id():
    torch.manual_seed(0)
    _, target = InstancePaste(scales=fixed_scales(0.2))(real_sample(), synthetic_sample())
    assert (target["is_synthetic"], target["sample_id"], target["image_id"]) == (True, "7-1", 3)
    assert target["negative_labels"].tolist() == [] and target["not_exhaustive_labels"].tolist() == []


def test_copies_are_drawn_for_each_instance():
    paste = InstancePaste(scales=fixed_scales(0.05), copies=(1, 3), feather_px=0.0, min_area_px=1)
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        labels = paste(real_sample(), synthetic_sample((1, 3)))[1]["labels"].tolist()
        seen.add((labels.count(1), labels.count(3)))
    assert {count for pair in seen for count in pair} >= {1, 2, 3} and max(map(max, seen)) == 3


def test_a_slot_pastes_onto_its_own_real_image_and_its_seed_fixes_it():
    class Source:
        def read(self, ref):
            if ref == "torn":
                raise ValueError("torn")
            return synthetic_sample()

    paste = InstancePaste(scales=fixed_scales(0.2))
    dataset = SlotDataset([real_sample()], Source(), None, paste)
    slots = [Slot(0, "good", seed, "fresh") for seed in (1, 1, 2)]
    images = [dataset[slot][0] for slot in slots]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    assert dataset[Slot(0, None, 1, "real")][1]["is_synthetic"] is False
    assert dataset[Slot(0, "torn", 1, "fresh")][1]["is_synthetic"] is False


def test_faulty_copies_are_refused():
    with pytest.raises(ValueError, match=r"copies must rise, got \(3, 1\)"):
        InstancePaste(scales=fixed_scales(0.2), copies=(3, 1))
