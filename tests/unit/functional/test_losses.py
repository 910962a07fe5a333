"""Every number here is worked by hand from the formula of its paper."""

import math

import pytest
import torch

from mflight.functional.losses import (
    draw_federated_classes,
    eqlv2_weights,
    gradient_sums,
    one_hot_classes,
    seesaw_losses,
    sigmoid_loss,
)

LN2 = math.log(2)


def test_sigmoid_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, -math.log(3)]])  # scores 1/2, 3/4; 1/2, 1/4
    wanted = one_hot_classes(torch.tensor([2, 0]), num_classes=2)
    every = sigmoid_loss(logits, wanted, torch.ones(2))
    assert every.item() == pytest.approx((2 * LN2 - 2 * math.log(0.75)) / 2)
    only_second = sigmoid_loss(logits, wanted, torch.tensor([0.0, 1.0]))
    assert only_second.item() == pytest.approx(-math.log(0.75))
    assert sigmoid_loss(logits[:0], wanted[:0], torch.ones(2)).item() == 0


def test_federated_classes_hold_those_present_and_as_many_as_wanted():
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    labels = torch.tensor([0, 2, 5, 5])
    for num_sampled, expected in ((1, 2), (2, 2), (4, 4), (50, 5)):
        chosen = draw_federated_classes(labels, weights, num_sampled)
        assert chosen.sum() == expected and chosen[1] and chosen[4]
    none_present = draw_federated_classes(torch.tensor([0]), weights, 50)
    assert none_present.tolist() == [True, False, True, True, False]  # those of weight 0 are never drawn


def test_federated_classes_are_drawn_by_their_weight():
    generator = torch.Generator().manual_seed(0)
    background = torch.tensor([0])
    draws = torch.stack(
        [draw_federated_classes(background, torch.tensor([1.0, 3.0]), 1, generator) for _ in range(2000)]
    )
    assert (draws.sum(dim=1) == 1).all()
    assert draws[:, 1].float().mean().item() == pytest.approx(0.75, abs=0.03)  # 3 standard deviations


def test_seesaw_by_hand():
    logits = torch.tensor([[0.0, LN2], [0.0, LN2]])  # scores 1/3, 2/3
    frequent, rare = seesaw_losses(logits, torch.tensor([1, 2]), torch.tensor([100, 1]))
    mitigation, compensation = (1 / 100) ** 0.8, (2 / 1) ** 2
    assert frequent.item() == pytest.approx(math.log(1 + 2 * mitigation * compensation))
    assert rare.item() == pytest.approx(-math.log(2 / 3))  # the rare class keeps its full push


def test_seesaw_without_its_factors_is_cross_entropy_and_the_score_is_bounded():
    logits = torch.tensor([[0.0, math.log(999)]])  # scores 0.001, 0.999
    label, counts = torch.tensor([1]), torch.tensor([5, 5])
    plain = seesaw_losses(logits, label, counts, p=0.0, q=0.0)
    assert plain.item() == pytest.approx(math.log(1000))
    paper = seesaw_losses(logits, label, counts, min_score=0.0)
    assert paper.item() == pytest.approx(math.log(1 + 999 * 999**2), rel=1e-5)
    bounded = seesaw_losses(logits, label, counts, min_score=0.01)
    assert bounded.item() == pytest.approx(math.log(1 + 999 * 99.9**2), rel=1e-5)


def test_seesaw_counts_below_one_count_as_one():
    logits = torch.zeros(1, 2)
    loss = seesaw_losses(logits, torch.tensor([1]), torch.tensor([16, 0]), p=0.5)
    assert loss.item() == pytest.approx(math.log(1 + 1 / 4))


def test_seesaw_factors_carry_no_gradient():
    logits = torch.tensor([[0.0, LN2]], requires_grad=True)
    seesaw_losses(logits, torch.tensor([1]), torch.tensor([100, 1])).sum().backward()
    share = 1 / (1 + 2 * (1 / 100) ** 0.8 * 4)  # the changed softmax, with its factors held
    assert logits.grad[0].tolist() == pytest.approx([share - 1, 1 - share])


def test_eqlv2_weights_by_hand():
    positive, negative = eqlv2_weights(torch.tensor([0.0, 0.8, 1.8, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    f = [1 / (1 + math.exp(9.6)), 0.5, 1 / (1 + math.exp(-12)), 1.0]
    assert negative.tolist() == pytest.approx(f, rel=1e-4)
    assert positive.tolist() == pytest.approx([1 + 4 * (1 - value) for value in f], rel=1e-4)


def test_gradient_sums_are_those_of_autograd():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, requires_grad=True)
    wanted = one_hot_classes(torch.tensor([1, 0, 3, 3, 2]), num_classes=3)
    weights = torch.rand(5, 3, generator=generator)
    (sigmoid_loss(logits, wanted, weights) * len(logits)).backward()
    size = logits.grad.abs()
    positive, negative = gradient_sums(logits.detach(), wanted, weights)
    assert torch.allclose(positive, (size * wanted).sum(dim=0))
    assert torch.allclose(negative, (size * (1 - wanted)).sum(dim=0))
