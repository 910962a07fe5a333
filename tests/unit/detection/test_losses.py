import math

import pytest
import torch

from mflight.data.categories import Categories, Category
from mflight.detection.losses import EQLv2Loss, FederatedLoss, SeesawLoss, SoftmaxLoss
from tests.unit.detection.test_mask_rcnn import LOSSES, SIDE, build_tiny, draw_shapes
from tests.unit.two_ranks import on_two_ranks

LN2 = math.log(2)
CATEGORIES = Categories([Category(number, f"c{number}", image_count=4**number) for number in (1, 2, 3)])


def build_loss(name, num_classes=3):
    if name == "federated":
        return FederatedLoss(num_classes=num_classes, categories=lambda: CATEGORIES)
    kinds = {"softmax": SoftmaxLoss, "seesaw": SeesawLoss, "eqlv2": EQLv2Loss}
    return kinds[name](num_classes=num_classes)


NAMES = ["softmax", "federated", "seesaw", "eqlv2"]


def test_federated_loss_by_hand():
    loss = FederatedLoss(num_classes=3, categories=lambda: CATEGORIES, num_sampled=1)
    # classes 1 and 3 are there, so none is drawn: 2 regions x 2 classes
    assert loss(torch.zeros(2, 3), torch.tensor([1, 3])).item() == pytest.approx(2 * LN2)
    assert loss.class_weights.tolist() == [2, 4, 8]  # roots of 4, 16, 64
    assert loss(torch.zeros(4, 3), torch.tensor([0, 0, 0, 0])).item() == pytest.approx(LN2)


def test_federated_loss_tells_of_other_categories():
    loss = FederatedLoss(num_classes=4, categories=lambda: CATEGORIES)
    with pytest.raises(ValueError, match=r"data.num_classes must be the 3 classes.*got 4"):
        loss(torch.zeros(1, 4), torch.tensor([1]))


def test_seesaw_loss_by_hand_over_two_steps():
    loss = SeesawLoss(num_classes=2)
    logits = torch.zeros(4, 4)
    labels = torch.tensor([1, 1, 2, 0])
    # objectness ln 2 for each of 4; classes: N = (2, 1) from this very step
    common = math.log(1 + (1 / 2) ** 0.8)
    assert loss(logits, labels).item() == pytest.approx((4 * LN2 + 2 * common + LN2) / 4)
    loss(logits[:2], torch.tensor([1, 0]))
    assert loss.class_counts.tolist() == [3, 1]


def test_eqlv2_loss_by_hand_over_two_steps():
    loss = EQLv2Loss(num_classes=2)
    logits, labels = torch.zeros(2, 3), torch.tensor([1, 0])
    assert loss(logits, labels).item() == pytest.approx(6 * LN2 / 2)  # weights of 1
    assert loss.positive_sums.tolist() == [0.5, 0.0] and loss.negative_sums.tolist() == [0.5, 1.0]
    r1, r2 = 1 / (1 + math.exp(-12 * (1 - 0.8))), 1 / (1 + math.exp(12 * 0.8))
    q1 = 1 + 4 * (1 - r1)
    assert loss(logits, labels).item() == pytest.approx(LN2 * (2 + q1 + r1 + 2 * r2) / 2)
    assert loss.positive_sums.tolist() == pytest.approx([0.5 + q1 / 2, 0.0])
    assert loss.negative_sums.tolist() == pytest.approx([0.5 + r1 / 2, 1.0 + r2])


def test_eqlv2_refuses_sums_of_16_bits():
    loss = EQLv2Loss(num_classes=2).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"trainer.precision.*got torch.bfloat16"):
        loss(torch.zeros(1, 3), torch.tensor([1]))


def test_scores_by_hand():
    third = torch.tensor([[0.0, LN2, 0.0]])
    assert SoftmaxLoss(num_classes=2).scores(third)[0].tolist() == pytest.approx([0.5, 0.25])
    federated = FederatedLoss(num_classes=2, categories=lambda: CATEGORIES)
    assert federated.scores(torch.tensor([[0.0, math.log(3)]]))[0].tolist() == pytest.approx([0.5, 0.75])
    seesaw = SeesawLoss(num_classes=2).scores(torch.tensor([[0.0, math.log(3), LN2, 0.0]]))
    assert seesaw[0].tolist() == pytest.approx([0.75 * 2 / 3, 0.75 / 3])  # an object for three quarters
    eqlv2 = EQLv2Loss(num_classes=2).scores(torch.tensor([[math.log(3), 0.0, math.log(3)]]))
    assert eqlv2[0].tolist() == pytest.approx([0.5 / 4, 0.75 / 4])  # background for three quarters


@pytest.mark.parametrize("name", NAMES)
def test_the_class_whose_logit_rises_has_the_best_score(name):
    loss = build_loss(name)
    logits = torch.zeros(2, loss.num_logits)
    logits[0, -1] += 9.0  # class 3 of 3
    logits[0, 0] -= 9.0 if name != "federated" else 0.0
    scores = loss.scores(logits)
    assert scores.shape == (2, 3) and scores[0].argmax() == 2 and (0 <= scores).all() and (scores <= 1).all()
    assert scores[0, 2] > 0.99 and (scores[0, :2] < 0.51).all()
    expected = {"softmax": 1 / 4, "federated": 1 / 2, "seesaw": 1 / 6, "eqlv2": 1 / 4}
    assert scores[1].tolist() == pytest.approx([expected[name]] * 3)


@pytest.mark.parametrize("name", NAMES)
def test_scores_before_training_are_as_low_as_the_loss_wants(name):
    model = build_tiny(classification_loss=build_loss(name), num_classes=3)
    logits = model.roi_heads.box_predictor(torch.zeros(1, 64))[0]
    scores = model.roi_heads.classification_loss.scores(logits)[0]
    expected = {"federated": 0.01, "eqlv2": 0.001 / 2, "seesaw": 1 / 6}
    if name in expected:
        assert scores.tolist() == pytest.approx([expected[name]] * 3, rel=1e-4)
    assert scores.shape == (3,)


@pytest.mark.parametrize("temperature", [None, 20.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_detector_trains_and_predicts_with_it(name, temperature):
    loss = build_loss(name)
    model = build_tiny(classification_loss=loss, cosine_temperature=temperature, box_detections_per_img=30)
    images, targets = draw_shapes()
    losses = model(images, targets)
    assert set(losses) == LOSSES and all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    prediction = model.eval()(images)[0]
    assert 0 < len(prediction["labels"]) <= 30 and set(prediction["labels"].tolist()) <= {1, 2, 3}
    assert (prediction["scores"].diff() <= 0).all() and 1e-4 < prediction["scores"].min()
    assert prediction["roi_masks"].shape[1:] == (1, 28, 28)


@pytest.mark.parametrize("name", NAMES)
def test_the_background_that_is_left_out_counts_for_nothing(name):
    loss = build_loss(name)
    model = build_tiny(classification_loss=loss)
    images, targets = draw_shapes()
    for target in targets:
        target["ignore_boxes"] = torch.tensor([[0.0, 0, SIDE, SIDE]])
    given = []
    loss.register_forward_pre_hook(lambda module, args: given.append(args[1]))
    model(images, targets)
    assert len(given[0]) > 0 and (given[0] > 0).all()
    if name == "seesaw":
        assert loss.class_counts.tolist() == [(given[0] == label).sum() for label in (1, 2, 3)]
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    alone = model(images[2:], targets[2:])  # no object, no background: nothing to learn from
    assert alone["loss_classifier"] == 0 and len(given[1]) == 0
    for key, value in loss.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["seesaw", "eqlv2"])
def test_a_checkpoint_holds_what_the_loss_has_counted(name):
    model = build_tiny(classification_loss=build_loss(name))
    model(*draw_shapes())
    other = build_tiny(classification_loss=build_loss(name))
    other.load_state_dict(model.state_dict())
    state, restored = (m.roi_heads.classification_loss.state_dict() for m in (model, other))
    assert state and all(value.any() and torch.equal(value, restored[key]) for key, value in state.items())


def test_the_frequencies_of_the_dataset_are_no_part_of_a_checkpoint():
    assert not build_loss("federated").state_dict()


def test_a_loss_for_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"classification_loss.num_classes must be .*=3, got 5"):
        build_tiny(classification_loss=SeesawLoss(num_classes=5))
    with pytest.raises(ValueError, match="cosine_temperature"):
        build_tiny(cosine_temperature=-1.0)


RANK_LABELS = ([1, 0, 2], [])  # the second rank has nothing to learn from


def count_on_rank(rank):
    labels = torch.tensor(RANK_LABELS[rank], dtype=torch.int64)
    seesaw, eqlv2 = SeesawLoss(num_classes=2), EQLv2Loss(num_classes=2)
    for _ in range(2):
        seesaw(torch.zeros(len(labels), 4), labels)
        eqlv2(torch.zeros(len(labels), 3), labels)
    return [values.tolist() for loss in (seesaw, eqlv2) for values in loss.state_dict().values()]


def test_two_ranks_count_together(tmp_path):
    first, second = on_two_ranks(count_on_rank, tmp_path)
    alone = EQLv2Loss(num_classes=2)
    for _ in range(2):
        alone(torch.zeros(3, 3), torch.tensor(RANK_LABELS[0]))
    assert first == second
    assert first == [[2, 2], alone.positive_sums.tolist(), alone.negative_sums.tolist()]
