"""The corrected scores, against numbers worked by hand."""

import math

import pytest
import torch

from mflight.detection.losses import EQLv2Loss, FederatedLoss, SeesawLoss, SoftmaxLoss
from mflight.detection.prior_correction import PriorCorrection
from tests.unit.detection.test_mask_rcnn import build_tiny, draw_shapes

REAL, TRAINED = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, [1.0, 1.0]),
        ({"tau": 1.0}, [3 / 2, 1 / 2]),
        ({"tau": 2.0}, [9 / 4, 1 / 4]),
        ({"tau": 1.0, "target": "uniform"}, [1.0, 1.0]),
    ],
)
def test_the_shift_is_the_ratio_of_the_priors(settings, factors):
    assert PriorCorrection(**settings).shift(REAL, TRAINED).exp().tolist() == pytest.approx(factors)


def test_uniform_divides_by_the_counts_trained_on_as_norcal_does():
    factors = PriorCorrection(tau=1.0, target="uniform").shift(REAL, torch.tensor([300.0, 100.0])).exp()
    assert factors.tolist() == pytest.approx([(1 / 2) / (3 / 4), (1 / 2) / (1 / 4)])


def test_a_class_that_was_never_seen_counts_as_seen_once():
    shift = PriorCorrection(tau=1.0).shift(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0]))
    assert shift.tolist() == pytest.approx([math.log((1 / 2) / (1 / 4)), math.log((1 / 2) / (3 / 4))])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SoftmaxLoss(num_classes=2), [1.5 / 3, 0.5 / 3]),  # of 1 + 1.5 + 0.5
        (FederatedLoss(num_classes=2, categories=lambda: ()), [1.5 / 2.5, 0.5 / 1.5]),
        (SeesawLoss(num_classes=2), [1.5 / 2 / 2, 0.5 / 2 / 2]),  # half of them an object
        (EQLv2Loss(num_classes=2), [1.5 / 2.5 / 2, 0.5 / 1.5 / 2]),  # half of them background
    ],
)
def test_every_loss_corrects_the_classes_and_leaves_the_background(loss, expected):
    logits = torch.zeros(1, loss.num_logits)
    shift = PriorCorrection(tau=1.0).shift(REAL, TRAINED)
    assert loss.scores(loss.shift_classes(logits, shift))[0].tolist() == pytest.approx(expected)


def test_the_detector_corrects_in_evaluation_only():
    model = build_tiny()
    images, targets = draw_shapes()
    model.roi_heads.class_shift = torch.tensor([-99.0, 0.0, 0.0])
    torch.manual_seed(0)
    shifted = model(images, targets)["loss_classifier"]
    assert all((found["labels"] != 1).all() for found in model.eval()(images))
    model.roi_heads.class_shift = None
    assert any((found["labels"] == 1).any() for found in model(images))
    torch.manual_seed(0)
    assert model.train()(images, targets)["loss_classifier"] == shifted


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"input_value=-1\.0"):
        PriorCorrection(tau=-1.0)
    with pytest.raises(ValueError, match="input_value='rare'"):
        PriorCorrection(target="rare")
