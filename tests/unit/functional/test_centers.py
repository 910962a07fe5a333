import math

import pytest
import torch

from mflight.functional import centers
from mflight.functional.centers import (
    center_targets,
    decode_ltrb,
    heat_losses,
    ltrb_giou_losses,
    make_locations,
)

LEVELS = make_locations([(16, 16), (8, 8), (4, 4)], (8, 16, 32), torch.zeros(0))


def boxes_of(*boxes):
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def test_locations_are_the_centres_of_the_cells_row_by_row():
    first, second, third = LEVELS.split(LEVELS.centers)
    assert first[:2].tolist() == [[4.0, 4.0], [12.0, 4.0]] and first[16].tolist() == [4.0, 12.0]
    assert second[-1].tolist() == [120.0, 120.0] and third[0].tolist() == [16.0, 16.0]
    assert LEVELS.strides[[0, 256, -1]].tolist() == [8.0, 16.0, 32.0]


def test_neighbouring_levels_share_the_instances_between_them():
    half_diagonals = torch.tensor([1.0, 64.0, 80.0, 81.0, 128.0, 160.0, 161.0, 1e6])
    assert LEVELS.learns(half_diagonals).int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]


def test_a_box_is_learnt_around_its_centre_and_its_heat_reaches_every_level():
    box = boxes_of([38, 32, 62, 72])  # centre (50, 52), cell (6, 6) of 8 px
    targets = center_targets(box, LEVELS)
    assert targets.positives.tolist() == [6 * 16 + 6]
    rows = torch.where(targets.has_box)[0]
    assert rows.tolist() == [row * 16 + column for row in (5, 6, 7) for column in (5, 6, 7)]
    restored = decode_ltrb(LEVELS.centers[rows], LEVELS.strides[rows], targets.ltrb[rows])
    assert torch.allclose(restored, box.expand(9, 4))
    assert targets.heat[6 * 16 + 6] == 1.0
    for level in LEVELS.split(targets.heat[:, None]):
        assert level.max() == 1.0, "a level that does not learn the box knows its centre all the same"
    away = (60 - 50) ** 2 / (2 * (1 / 9) ** 2 * 24 * 40)  # of the location (60, 52)
    assert targets.heat[6 * 16 + 7].item() == pytest.approx(math.exp(-away), rel=1e-5)


def test_a_location_outside_of_a_small_box_does_not_learn_it():
    targets = center_targets(boxes_of([50, 50, 55, 55]), LEVELS)
    assert targets.positives.tolist() == [6 * 16 + 6]
    assert torch.where(targets.has_box)[0].tolist() == [6 * 16 + 6]
    nowhere = center_targets(boxes_of([53, 53, 55, 55]), LEVELS)  # between the locations
    assert len(nowhere.positives) == 1 and not nowhere.has_box.any()


def test_a_centre_on_the_far_border_stays_in_the_last_cell():
    targets = center_targets(boxes_of([126, 126, 130, 130]), LEVELS)
    assert targets.positives.tolist() == [15 * 16 + 15]


def test_of_two_objects_the_nearer_is_learnt_whatever_their_order():
    pair = boxes_of([16, 16, 56, 56], [28, 28, 60, 60])  # centres (36, 36) and (44, 44)
    one, other = center_targets(pair, LEVELS), center_targets(pair.flip(0), LEVELS)
    assert torch.equal(one.ltrb[one.has_box], other.ltrb[other.has_box])
    row = 5 * 16 + 5  # at (44, 44), beside the first centre
    assert one.has_box[row] and one.ltrb[row].tolist() == [2.0] * 4


def test_objects_are_taken_a_few_at_a_time_with_the_same_result(monkeypatch):
    corners = torch.rand(30, 2, 2, generator=torch.Generator().manual_seed(0)) * 128
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)
    whole = center_targets(boxes, LEVELS)
    monkeypatch.setattr(centers, "_INSTANCES_AT_ONCE", 7)
    parts = center_targets(boxes, LEVELS)
    assert torch.equal(whole.heat, parts.heat) and torch.equal(whole.has_box, parts.has_box)
    assert torch.equal(whole.ltrb[whole.has_box], parts.ltrb[parts.has_box])


def test_an_image_without_instances_has_no_heat():
    targets = center_targets(boxes_of(), LEVELS)
    assert targets.heat.sum() == 0 and not targets.has_box.any() and len(targets.positives) == 0


def test_confident_false_alarms_and_what_is_left_out_cost_nothing():
    logits = torch.tensor([0.0, 3.0, 0.0]).requires_grad_()  # 3.0: a score of 0.95
    left_out = torch.tensor([False, False, True])
    _, background = heat_losses(logits, torch.zeros(3), torch.zeros(0, dtype=torch.int64), left_out)
    background.backward()
    assert logits.grad[0] > 0 and logits.grad[1:].tolist() == [0.0, 0.0]
    assert background.item() == pytest.approx(0.375 * 0.25 * torch.tensor(2.0).log().item())


def test_giou_of_equal_boxes_is_no_loss_and_of_others_is_scaled_by_hand():
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert ltrb_giou_losses(box, box).item() == pytest.approx(0.0)
    left, right = torch.tensor([[1.0, 1, 0, 1]]), torch.tensor([[0.0, 1, 1, 1]])
    # no overlap: (0 + 1) / (4 + 1) - (4 - 4) / 4
    assert ltrb_giou_losses(left, right).item() == pytest.approx(0.8)


def test_boxes_have_a_least_side():
    boxes = decode_ltrb(torch.tensor([[8.0, 8.0]]), torch.tensor([8.0]), torch.zeros(1, 4))
    assert boxes[0].tolist() == pytest.approx([8.0, 8.0, 8.01, 8.01])
