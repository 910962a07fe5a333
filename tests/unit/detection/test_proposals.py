import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from mflight.detection.heads import InstanceHeads
from mflight.detection.loss_weights import SyntheticLosses
from mflight.detection.proposals import ProposalNetwork, is_ignored
from tests.unit.detection.test_mask_rcnn import SIDE, build_tiny, draw_shapes

OBJECT = [8.0, 8, 24, 24]
PART = [32.0, 0, 64, 32]  # may show an object without a label
BOXES = torch.tensor(
    [
        [8.0, 8, 24, 24],  # the object itself
        [40, 8, 56, 24],  # inside the part
        [24, 8, 40, 24],  # half of it inside
        [23, 8, 39, 24],  # less than half
        [0, 40, 16, 56],  # far from both
        [0, 0, 64, 64],  # the part is a quarter of it
    ]
)
LABELS = [1, -1, -1, 0, 0, 0]


def network_on_one_image():
    network = build_tiny().rpn
    network.image_sizes = [(SIDE, SIDE)]
    return network


def target(*, boxes=(OBJECT,), ignore_boxes=(PART,), labels=(2,)):
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels[: len(boxes)], dtype=torch.int64),
        "masks": torch.ones((len(boxes), SIDE, SIDE), dtype=torch.uint8),
        "ignore_boxes": torch.tensor(ignore_boxes).reshape(-1, 4),
    }


def plain(network: nn.Module, stock: type) -> nn.Module:
    """The same network with torchvision's own way to assign and sample."""
    network.__class__ = type("Stock", (type(network),), {
        name: getattr(stock, name)
        for name in ("assign_targets_to_anchors", "compute_loss", "select_training_samples")
        if hasattr(stock, name)
    })  # fmt: skip
    return network


def test_half_of_a_box_inside_of_one_part_is_enough():
    inside = is_ignored(BOXES, target(), overlap=0.5)
    assert inside.tolist() == [False, True, True, False, False, False]
    assert is_ignored(BOXES, target(), overlap=0.25).tolist() == [False, True, True, True, False, True]
    halves = target(ignore_boxes=([0.0, 40, 7, 56], [7.0, 40, 14, 56]))
    assert not is_ignored(BOXES, halves, overlap=0.5).any()  # no single part covers half of a box


def test_no_parts_leave_nothing_out():
    assert is_ignored(BOXES, {"boxes": BOXES}, overlap=0.5) is None
    assert is_ignored(BOXES, target(ignore_boxes=()), overlap=0.5) is None


def test_anchors_inside_a_part_are_neither_positive_nor_negative():
    network = network_on_one_image()
    (labels,), (matched,) = network.assign_targets_to_anchors([BOXES], [target()])
    assert isinstance(network, ProposalNetwork)
    assert labels.tolist() == LABELS
    assert matched[0].tolist() == OBJECT
    (labels,), _ = network.assign_targets_to_anchors([BOXES], [target(boxes=())])
    assert labels.tolist() == [0, -1, -1, 0, 0, 0]


def test_an_anchor_that_matches_an_instance_stays_positive_inside_a_part():
    covered = target(ignore_boxes=([0.0, 0, 64, 64],))
    (labels,), _ = network_on_one_image().assign_targets_to_anchors([BOXES], [covered])
    assert labels.tolist() == [1, -1, -1, -1, -1, -1]


def test_only_what_an_anchor_shows_of_the_image_counts():
    anchors = torch.tensor(
        [[-48.0, 0, 16, 32], [48.0, 8, 112, 24], [80.0, 0, 96, 16]]
    )  # the last shows nothing
    parts = target(boxes=(), ignore_boxes=([0.0, 0, 16, 64], [48.0, 16, 64, 64]))
    (labels,), _ = network_on_one_image().assign_targets_to_anchors([anchors], [parts])
    assert labels.tolist() == [-1, -1, 0]


def test_proposals_inside_a_part_are_never_sampled():
    heads = build_tiny().roi_heads
    (sampled,), _, (labels,), _ = heads.select_training_samples([BOXES], [target()])
    assert isinstance(heads, InstanceHeads)
    expected = {tuple(box) for box, label in zip(BOXES.tolist(), LABELS, strict=True) if label >= 0}
    assert {tuple(box) for box in sampled.tolist()} == expected
    assert sorted(labels.tolist()) == [0, 0, 0, 2, 2]  # the instance's own box is sampled too
    covered = target(ignore_boxes=([0.0, 0, 64, 64],))
    _, _, (labels,), _ = heads.select_training_samples([BOXES], [covered])
    assert labels.tolist() == [2, 2]


@pytest.mark.parametrize("has_key", [True, False])
def test_without_parts_losses_and_gradients_are_torchvisions_to_the_bit(has_key):
    images, targets = draw_shapes()
    results = []
    for is_stock in (False, True):
        model = build_tiny()
        if is_stock:
            plain(model.rpn, RegionProposalNetwork)
            plain(model.roi_heads, RoIHeads)
        part = {"ignore_boxes": torch.zeros((0, 4))} if has_key else {}
        torch.manual_seed(3)
        losses = model(images, [one | part for one in targets])
        sum(losses.values()).backward()
        results.append((losses, [p.grad for p in model.parameters() if p.grad is not None], torch.rand(1)))
    (ours, our_grads, our_next), (theirs, their_grads, their_next) = results
    assert ours == theirs and torch.equal(our_next, their_next)
    assert all(torch.equal(one, other) for one, other in zip(our_grads, their_grads, strict=True))


def test_what_lies_in_a_part_moves_no_loss():
    """The objectness inside a part gets no gradient; outside of it the background still does."""
    network = ProposalNetwork(
        synthetic_losses=SyntheticLosses(),
        anchor_generator=AnchorGenerator(((16,),), ((1.0,),)),
        head=nn.Identity(),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 10, "testing": 10},
        post_nms_top_n={"training": 10, "testing": 10},
        nms_thresh=0.7,
    )
    network.image_sizes = [(SIDE, SIDE)]
    objectness = torch.zeros(len(BOXES), 1, requires_grad=True)
    deltas = torch.zeros(len(BOXES), 4, requires_grad=True)
    labels, matched = network.assign_targets_to_anchors([BOXES], [target()])
    offsets = network.box_coder.encode(matched, [BOXES])
    network.compute_loss(objectness, deltas, labels, offsets)[0].backward()
    assert (objectness.grad[:, 0] != 0).tolist() == [label >= 0 for label in LABELS]


def test_an_image_of_which_nothing_counts_gives_losses_of_zero():
    image, everything = torch.rand(3, SIDE, SIDE), [-200.0, -200, 300, 300]
    losses = build_tiny()([image], [target(boxes=(), ignore_boxes=(everything,))])
    assert all(loss == 0 for loss in losses.values()), losses
    sum(losses.values()).backward()


def test_an_overlap_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"ignore_overlap[\s\S]*greater than 0 .*input_value=0.0"):
        build_tiny(ignore_overlap=0.0)


def test_anchors_keep_their_place_under_bfloat16():
    model = build_tiny()
    image = torch.rand(1, 3, SIDE, 1100)
    images = ImageList(image, [(SIDE, 1100)])
    exact = model.rpn.anchor_generator(images, list(model.backbone(image).values()))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = list(model.backbone(image).values())
        assert features[0].dtype == torch.bfloat16
        assert torch.equal(model.rpn.anchor_generator(images, features)[0], exact)
        objectness, offsets = model.rpn.head(features)
    assert {level.dtype for level in objectness + offsets} == {torch.float32}


def test_a_detector_trains_and_predicts_under_bfloat16():
    model = build_tiny(class_agnostic_boxes=True)
    images, targets = draw_shapes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, targets)
        prediction = model.eval()(images)[0]
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    assert prediction["boxes"].dtype == torch.float32 and len(prediction["boxes"]) > 0
