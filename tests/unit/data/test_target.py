import pytest
import torch

from mflight.data.target import check_target


def make_target(**changes):
    target = {
        "boxes": torch.tensor([[1.0, 0.0, 4.0, 3.0]]),
        "labels": torch.tensor([2]),
        "masks": torch.ones((1, 3, 4), dtype=torch.uint8),
        "image_id": 17,
        "area": torch.tensor([9.0]),
        "iscrowd": torch.tensor([0]),
        "is_synthetic": False,
        "negative_labels": torch.tensor([1]),
        "not_exhaustive_labels": torch.zeros(0, dtype=torch.int64),
        "ignore_boxes": torch.zeros((0, 4)),
        "sample_id": "",
    }
    return {**target, **changes}


def test_a_box_may_touch_every_edge_of_its_image():
    check_target(make_target(boxes=torch.tensor([[0.0, 0.0, 4.0, 3.0]])), (3, 4), num_classes=2)


def test_an_image_without_instances_is_a_target():
    empty = {
        "boxes": torch.zeros((0, 4)),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros((0, 3, 4), dtype=torch.uint8),
        "area": torch.zeros(0),
        "iscrowd": torch.zeros(0, dtype=torch.int64),
    }
    check_target(make_target(**empty), (3, 4), num_classes=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"boxes": torch.tensor([[2.0, 0.0, 2.0, 3.0]])},
            r"\[2.0, 0.0, 2.0, 3.0\] in the target of image 17",
        ),
        ({"boxes": torch.tensor([[1.0, 0.0, 4.5, 3.0]])}, r"x2 <= 4 .*got \[1.0, 0.0, 4.5, 3.0\]"),
        ({"ignore_boxes": torch.tensor([[0.0, 2.0, 4.0, 3.5]])}, r"ignore_boxes .*y2 <= 3, got .*3.5\]"),
        ({"ignore_boxes": torch.zeros(4)}, r"ignore_boxes must be .* shape \(4, 4\), got .*\(4,\)"),
        ({"labels": torch.tensor([0])}, r"labels must lie in 1..2, got \[0\]"),
        ({"negative_labels": torch.tensor([3])}, r"negative_labels must lie in 1..2, got \[3\]"),
        ({"labels": torch.tensor([2], dtype=torch.int32)}, "labels must be torch.int64 .*got torch.int32"),
        ({"masks": torch.ones((1, 4, 3), dtype=torch.uint8)}, r"shape \(1, 3, 4\), got .*\(1, 4, 3\)"),
        ({"masks": torch.full((1, 3, 4), 255, dtype=torch.uint8)}, "0 and 1 only, got 255"),
        ({"area": torch.ones(2)}, r"area must be .* shape \(1,\), got .*\(2,\)"),
    ],
)
def test_a_broken_rule_is_named_with_its_value(changes, message):
    with pytest.raises(ValueError, match=message):
        check_target(make_target(**changes), (3, 4), num_classes=2)


def test_a_missing_key_is_named():
    target = make_target()
    del target["iscrowd"]
    with pytest.raises(KeyError, match=r"image 17 lacks the keys \['iscrowd'\]"):
        check_target(target, (3, 4), num_classes=2)
