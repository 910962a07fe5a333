import pytest
import torch

from mflight.data.paste import Patch, cut_patch, paste_patch
from mflight.data.target import check_target

HEIGHT, WIDTH = 12, 16
RULES = {"min_visible_ratio": 0.5, "min_area_px": 4}


def rectangle_masks(boxes, size_hw=(HEIGHT, WIDTH)):
    masks = torch.zeros((len(boxes), *size_hw), dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


def make_target(boxes, labels, negative=(), not_exhaustive=()):
    masks = rectangle_masks(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "image_id": 3,
        "area": masks.sum(dim=(1, 2), dtype=torch.float32),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        "is_synthetic": False,
        "negative_labels": torch.tensor(negative, dtype=torch.int64),
        "not_exhaustive_labels": torch.tensor(not_exhaustive, dtype=torch.int64),
        "ignore_boxes": torch.zeros((0, 4)),
        "sample_id": "",
    }


def make_patch(boxes, labels, size_hw=(HEIGHT, WIDTH)):
    return Patch(torch.ones((3, *size_hw)), rectangle_masks(boxes, size_hw), torch.tensor(labels))


def paste(target, patch, corner_xy=(0, 0), **rules):
    image, pasted = paste_patch(torch.zeros((3, HEIGHT, WIDTH)), target, patch, corner_xy, **(RULES | rules))
    check_target(pasted, (HEIGHT, WIDTH), num_classes=9)
    return image, pasted


def test_a_covered_instance_loses_what_is_covered_and_gets_a_tight_box():
    # 6 x 4 = 24 px, of which the patch takes the right 2 columns: 8 px
    image, target = paste(make_target([(2, 2, 8, 6)], [1]), make_patch([(6, 1, 10, 7)], [2]))
    assert target["boxes"].tolist() == [[2, 2, 6, 6], [6, 1, 10, 7]]
    assert target["area"].tolist() == [16, 24] and target["labels"].tolist() == [1, 2]
    assert torch.equal(target["masks"], rectangle_masks([(2, 2, 6, 6), (6, 1, 10, 7)]))
    assert torch.equal(image[0], rectangle_masks([(6, 1, 10, 7)])[0].float())
    assert target["ignore_boxes"].tolist() == [] and target["is_synthetic"] is False


def test_what_is_covered_too_much_is_removed_and_its_rest_ignored():
    # 24 px, 6 of them left: a quarter, less than half
    _, target = paste(make_target([(2, 2, 8, 6), (12, 8, 16, 12)], [1, 5]), make_patch([(2, 3, 8, 6)], [2]))
    assert target["labels"].tolist() == [5, 2]
    assert target["ignore_boxes"].tolist() == [[2, 2, 8, 3]]
    assert target["not_exhaustive_labels"].tolist() == [1, 2]
    assert paste(make_target([(2, 2, 8, 6)], [1]), make_patch([(2, 3, 8, 6)], [2]), min_visible_ratio=0.25)[
        1
    ]["labels"].tolist() == [1, 2]  # now a quarter is enough


def test_a_wholly_covered_instance_leaves_nothing():
    _, target = paste(make_target([(2, 2, 8, 6)], [1]), make_patch([(1, 1, 9, 7)], [2]))
    assert target["labels"].tolist() == [2] and target["ignore_boxes"].tolist() == []
    assert target["not_exhaustive_labels"].tolist() == [2]


def test_an_untouched_instance_keeps_its_box_to_the_fraction():
    given = make_target([(1, 1, 3, 2)], [1])  # 2 px only: it is not the paste's to remove
    given["boxes"] = torch.tensor([[0.75, 0.5, 3.25, 2.5]])
    given["area"] = torch.tensor([1.7])
    _, target = paste(given, make_patch([(6, 6, 10, 10)], [2]))
    assert target["boxes"][0].tolist() == [0.75, 0.5, 3.25, 2.5]
    assert target["area"][0].item() == pytest.approx(1.7)


def test_a_patch_is_cut_at_the_edges_of_the_image():
    # at (-3, 9) the image shows columns 3 to 7 and rows 0 to 2 of the patch
    patch = make_patch([(2, 0, 8, 3), (0, 0, 4, 4), (0, 4, 8, 8)], [2, 4, 6], size_hw=(8, 8))
    image, target = paste(make_target([], []), patch, (-3, 9))
    # 18 px, 15 of them inside; 16 px, 3 inside: too few; the third is wholly outside
    assert target["labels"].tolist() == [2] and target["boxes"].tolist() == [[0, 9, 5, 12]]
    assert image[0].sum() == 15
    assert paste(make_target([], []), patch, (WIDTH, 0))[1]["labels"].tolist() == []


def test_federated_labels_follow_what_is_pasted():
    # 7 was verified absent; 1 is labelled exhaustively; of 3 and 5 others may be in the image
    given = make_target([(0, 0, 3, 3), (13, 0, 16, 3)], [1, 5], negative=[7, 8], not_exhaustive=[5])
    boxes = [(0, 6, 3, 9), (4, 6, 7, 9), (8, 6, 11, 9), (12, 6, 15, 9)]
    _, target = paste(given, make_patch(boxes, [7, 1, 3, 5]))
    assert target["negative_labels"].tolist() == [8]
    assert target["not_exhaustive_labels"].tolist() == [3, 5]


def test_the_given_sample_is_left_as_it_is():
    given, image = make_target([(2, 2, 8, 6)], [1]), torch.zeros((3, HEIGHT, WIDTH))
    paste_patch(image, given, make_patch([(4, 1, 10, 7)], [2]), (0, 0), **RULES)
    assert image.sum() == 0 and given["masks"].sum() == 24 and given["boxes"].tolist() == [[2, 2, 8, 6]]


def test_a_soft_edge_mixes_both_images_and_leaves_the_mask():
    image, target = paste(make_target([], []), make_patch([(4, 3, 12, 9)], [2]), feather_px=1.0)
    assert target["masks"][0].sum() == 48
    assert 0 < image[0, 6, 3] < image[0, 6, 4] < image[0, 6, 5] < image[0, 6, 7]
    assert image[0, 6, 3] + image[0, 6, 4] == pytest.approx(1.0, abs=1e-5)  # the edge lies between both


def test_a_patch_is_cut_out_with_a_margin_mirrored_and_resized():
    image = torch.arange(HEIGHT * WIDTH, dtype=torch.float32).reshape(1, HEIGHT, WIDTH).expand(3, -1, -1)
    mask = rectangle_masks([(1, 4, 5, 6)])[0]
    patch = cut_patch(image, mask, torch.tensor(3), margin_px=2)
    assert patch.image.shape == (3, 6, 7)  # one column only lies to the left
    assert patch.image[0, 0].tolist() == [32, 33, 34, 35, 36, 37, 38]  # row 2, columns 0 to 6
    assert torch.equal(patch.masks, rectangle_masks([(1, 2, 5, 4)], (6, 7))) and patch.labels.tolist() == [3]
    assert torch.equal(patch.mirrored().masks, rectangle_masks([(2, 2, 6, 4)], (6, 7)))
    assert torch.equal(patch.resized((12, 14)).masks, rectangle_masks([(2, 4, 10, 8)], (12, 14)))
