"""Which synthetic instances count: by hand, and by the gradients of a real detector."""

import pytest
import torch

from mflight.detection.verification import Verification, judge_instances, own_scores
from tests.unit.detection.test_loss_weights import build, target
from tests.unit.detection.test_mask_rcnn import build_tiny, draw_shapes

BOXES = torch.tensor([[0.0, 0, 20, 20], [40.0, 40, 60, 60]])
NEAR_FIRST = torch.tensor([[0.0, 0, 20, 10], [30.0, 0, 50, 20]])  # IoU 0.5 with the first, 0 with the second


def two_instances(is_synthetic=True):
    masks = torch.arange(2, dtype=torch.uint8)[:, None, None].expand(2, 64, 64)
    return {"boxes": BOXES, "labels": torch.tensor([1, 2]), "masks": masks, "is_synthetic": is_synthetic}


@pytest.mark.parametrize(("min_iou", "found"), [(0.3, [0]), (0.5, [0]), (0.6, []), (0.0, [0, 1])])
def test_an_instance_without_a_proposal_is_neither_object_nor_background(min_iou, found):
    verification = Verification(min_iou=min_iou, min_score=0.1)
    (kept,) = verification.found_only([two_instances()], [NEAR_FIRST])
    assert kept["labels"].tolist() == [index + 1 for index in found]
    assert torch.equal(kept["boxes"], BOXES[found])
    assert kept["masks"][:, 0, 0].tolist() == found
    lost = [index for index in (0, 1) if index not in found]
    assert torch.equal(kept.get("ignore_boxes", BOXES[:0]), BOXES[lost])


def test_parts_that_were_ignored_before_stay_and_real_images_are_not_judged():
    verification = Verification(min_iou=0.3, min_score=0.1)
    part = torch.tensor([[1.0, 2, 3, 4]])
    synthetic, real = two_instances() | {"ignore_boxes": part}, two_instances(is_synthetic=False)
    kept, same = verification.found_only([synthetic, real], [NEAR_FIRST, NEAR_FIRST[:0]])
    assert torch.equal(kept["ignore_boxes"], torch.cat([part, BOXES[1:]])) and same is real
    (nothing,) = verification.found_only([two_instances()], [NEAR_FIRST[:0]])
    assert len(nothing["boxes"]) == 0 and torch.equal(nothing["ignore_boxes"], BOXES)


def test_the_best_region_speaks_for_an_instance():
    scores = torch.tensor([[0.2, 0.7], [0.6, 0.3], [0.9, 0.05], [0.9, 0.9]])
    labels, matched = torch.tensor([1, 1, 2, 0]), torch.tensor([0, 0, 1, 0])
    assert own_scores(scores, labels, matched, num_instances=3).tolist() == pytest.approx([0.6, 0.05, 1.0])
    verification = Verification(min_iou=0.3, min_score=0.1)
    for is_synthetic, expected in ((True, [False, True]), (False, [False, False])):
        (doubted,) = verification.doubted(scores, [labels], [matched], [two_instances(is_synthetic)])
        assert doubted.tolist() == expected
        verification.count([two_instances(is_synthetic)] * 2, [two_instances(is_synthetic)], [doubted])
    assert verification.take_counts().tolist() == [4, 3]  # 2 of 4 were not found, 1 was doubted
    assert verification.take_counts().tolist() == [0, 0]


def gradients_by_loss(min_score=None, min_iou=0.0, *, parts=(), proposals=None):
    """Return of each loss its gradient by a real and a synthetic image of one object, and the counts."""
    model = build()
    images = [torch.rand(3, 64, 64, requires_grad=True) for _ in range(2)]
    if min_score is not None:
        model.rpn.verification = model.roi_heads.verification = Verification(
            min_iou=min_iou, min_score=min_score
        )
    if proposals is not None:
        model.rpn.filter_proposals = lambda *_: (proposals, [])
        model.rpn._proposals = proposals
    parts = torch.tensor(parts).reshape(-1, 4)
    losses = model(images, [target(False), target(True) | {"ignore_boxes": parts}])
    grads = {
        name: torch.autograd.grad(loss, images, retain_graph=True, allow_unused=True)
        for name, loss in losses.items()
    }
    return grads, model.roi_heads.verification and model.roi_heads.verification.take_counts().tolist()


def test_what_is_confirmed_changes_nothing():
    verified, counts = gradients_by_loss(0.0)
    plain, _ = gradients_by_loss()
    assert counts == [1, 0]
    for name, found in verified.items():
        assert all(torch.equal(one, other) for one, other in zip(found, plain[name], strict=True))


def test_what_is_doubted_is_left_out_by_the_heads_and_stays_an_object_to_the_proposals():
    everywhere = [[0.0, 0, 64, 64]]  # so that no background is learnt from either
    verified, counts = gradients_by_loss(1.0, parts=everywhere)
    plain, _ = gradients_by_loss(parts=everywhere)
    assert counts == [1, 1]
    for name in ("loss_classifier", "loss_box_reg", "loss_mask"):
        (real, synthetic), (plain_real, plain_synthetic) = verified[name], plain[name]
        assert torch.equal(real, plain_real) and real.abs().max() > 0
        assert (synthetic == 0).all() and plain_synthetic.abs().max() > 0
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        assert all(torch.equal(*pair) for pair in zip(verified[name], plain[name], strict=True))


def test_the_place_of_what_is_doubted_does_not_become_background():
    inside = torch.tensor([[13.0, 17, 25, 29]])  # of the object's box, too small to match it
    proposals = [torch.cat([inside, torch.tensor([[12.0, 16, 44, 39]])])] * 2
    (_, synthetic), (_, plain) = (
        gradients_by_loss(score, proposals=proposals)[0]["loss_classifier"] for score in (1.0, 0.0)
    )
    assert (synthetic == 0).all() and plain.abs().max() > 0


def test_what_no_proposal_finds_is_left_out_by_all_losses():
    everywhere, far = [[0.0, 0, 64, 64]], [torch.tensor([[50.0, 50, 60, 60]])] * 2
    verified, counts = gradients_by_loss(0.0, 0.3, parts=everywhere, proposals=far)
    assert counts == [1, 1]
    for _, synthetic in verified.values():
        assert synthetic is None or (synthetic == 0).all()


def test_a_trained_detector_judges_by_its_proposals_and_scores():
    model, (images, targets) = build_tiny().eval(), draw_shapes()
    model.rpn.forward = lambda *_: ([torch.tensor([[6.0, 8, 26, 18], [0.0, 50, 9, 60]])], {})
    ious, scores = judge_instances(model, images[0], targets[0])  # a square of 20 px, a disc far from both
    assert ious.tolist() == pytest.approx([0.5, 0.0])
    seen = []
    model.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, args: seen.extend(args[1]))
    assert torch.equal(judge_instances(model, images[0], targets[0])[1], scores)
    assert seen[0].tolist() == [
        *targets[0]["boxes"].tolist(),
        [6, 8, 26, 18],
    ]  # their own boxes, and one on it
    assert ((scores > 0) & (scores < 1)).all()


def test_images_without_instances_or_proposals_are_judged_too():
    model, (images, targets) = build_tiny().eval(), draw_shapes()
    assert [len(values) for values in judge_instances(model, images[2], targets[2])] == [0, 0]
    model.rpn.forward = lambda *_: ([torch.zeros(0, 4)], {})
    ious, scores = judge_instances(model, images[0], targets[0])
    assert ious.tolist() == [0.0, 0.0] and (scores > 0).all()
