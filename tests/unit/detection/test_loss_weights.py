import pytest
import torch

from mflight.data.categories import Categories, Category
from mflight.detection.backbones import MiniFPN
from mflight.detection.loss_weights import LOSS_NAMES, SyntheticLosses, weigh_rows
from mflight.detection.losses import EQLv2Loss, FederatedLoss, SeesawLoss, SoftmaxLoss
from mflight.detection.mask_rcnn import build_mask_rcnn
from tests.unit.two_ranks import on_two_ranks

CLASSES = Categories([Category(number, str(number), image_count=10 * number) for number in (1, 2, 3)])
CLASSIFICATION_LOSSES = {
    "softmax": lambda: SoftmaxLoss(num_classes=3),
    "federated": lambda: FederatedLoss(num_classes=3, categories=lambda: CLASSES, num_sampled=2),
    "seesaw": lambda: SeesawLoss(num_classes=3),
    "eqlv2": lambda: EQLv2Loss(num_classes=3),
}
NAMES_OF = {
    "classification": ["loss_classifier"],
    "boxes": ["loss_box_reg"],
    "masks": ["loss_mask"],
    "proposals": ["loss_objectness", "loss_rpn_box_reg"],
}


def target(is_synthetic):
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 16:40, 12:44] = 1
    return {
        "boxes": torch.tensor([[12.0, 16, 44, 40]]),
        "labels": torch.tensor([2]),
        "masks": masks,
        "is_synthetic": is_synthetic,
    }


def build(weight=1.0, losses=LOSS_NAMES, classification_loss="softmax"):
    torch.manual_seed(0)
    return build_mask_rcnn(
        backbone=MiniFPN(),
        num_classes=3,
        min_size=None,
        anchor_sizes_px=((12,), (24,), (48,), (96,)),
        box_head_channels=32,
        mask_head_channels=(8,),
        classification_loss=CLASSIFICATION_LOSSES[classification_loss](),
        synthetic_loss_weight=weight,
        synthetic_losses=losses,
    )


def gradients(weight):
    """Return the losses of a real and a synthetic image, and the sizes of both images' gradients."""
    model = build(weight)
    images = [torch.rand(3, 64, 64, requires_grad=True) for _ in range(2)]
    losses = model(images, [target(False), target(True)])
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}, [image.grad for image in images]


def gradients_by_loss(weight, losses, classification_loss):
    """Return of each loss its gradient by the real image, by the synthetic one and by the parameters."""
    model = build(weight, losses, classification_loss)
    images = [torch.rand(3, 64, 64, requires_grad=True) for _ in range(2)]
    found = model(images, [target(False), target(True)])
    parameters = [p for p in model.parameters() if p.requires_grad]
    return {
        name: torch.autograd.grad(loss, [*images, *parameters], retain_graph=True, allow_unused=True)
        for name, loss in found.items()
    }


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_the_gradient_of_a_synthetic_image_is_scaled_and_that_of_a_real_one_is_not(weight):
    losses, (real, synthetic) = gradients(1.0)
    weighted_losses, (weighted_real, weighted_synthetic) = gradients(weight)
    assert synthetic.abs().max() > 0
    torch.testing.assert_close(weighted_real, real)
    torch.testing.assert_close(weighted_synthetic, weight * synthetic)
    assert weighted_losses == losses


@pytest.mark.parametrize("classification_loss", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("left_out", LOSS_NAMES)
def test_a_loss_that_does_not_count_takes_nothing_from_a_synthetic_image(left_out, classification_loss):
    """To the bit as under a weight of 0 in that loss, and as under a weight of 1 in the others."""
    counted = tuple(name for name in LOSS_NAMES if name != left_out)
    some = gradients_by_loss(1.0, counted, classification_loss)
    all_of_them, none = (gradients_by_loss(weight, LOSS_NAMES, classification_loss) for weight in (1.0, 0.0))
    for name, found in some.items():
        is_left_out = name in NAMES_OF[left_out]
        expected = (none if is_left_out else all_of_them)[name]
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
        assert (found[1].abs().max() == 0) == is_left_out  # by the synthetic image
        assert found[0].abs().max() > 0  # by the real one


def test_a_step_of_synthetic_images_alone_leaves_no_parameter_without_a_gradient():
    model = build(losses=())
    sum(model([torch.rand(3, 64, 64)], [target(True)]).values()).backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


def test_real_images_alone_and_a_weight_of_one_change_nothing():
    rows = torch.rand(3, requires_grad=True)
    assert SyntheticLosses(0.5).image_weights([target(False)] * 2, "masks") is None
    assert SyntheticLosses(losses=("boxes",)).image_weights([target(False)], "masks") is None
    assert SyntheticLosses(1.0).image_weights([target(True)], "masks") is None
    assert weigh_rows(rows, None, [1, 2]) is rows


def test_each_row_has_the_weight_of_its_image():
    rows = torch.ones(4, 2, requires_grad=True)
    weigh_rows(rows, (0.5, 1.0, 2.0), [1, 0, 3]).sum().backward()
    assert rows.grad[:, 0].tolist() == [0.5, 2.0, 2.0, 2.0]


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="input_value='objectness'"):
        build(losses=("objectness",))


def train_on_rank(rank):
    """Rank 0 sees a real image, rank 1 a synthetic one that only the masks are learnt from."""
    model = build(losses=("masks",))
    ddp = torch.nn.parallel.DistributedDataParallel(model)  # unused parameters would end the second step
    image = torch.rand(3, 64, 64)
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(0)
        sum(ddp([image], [target(is_synthetic=rank == 1)]).values()).backward()
    alone = build(losses=("masks",))
    torch.manual_seed(0)
    sum(alone([image], [target(is_synthetic=rank == 1)]).values()).backward()
    weights = [one.roi_heads.box_predictor.cls_score.weight.grad for one in (model, alone)]
    return [weight.abs().sum().item() for weight in weights]


def test_ranks_that_learn_from_nothing_keep_step_with_the_others(tmp_path):
    (real, real_alone), (synthetic, synthetic_alone) = on_two_ranks(train_on_rank, tmp_path)
    assert synthetic_alone == 0 and real_alone > 0
    assert real == synthetic == pytest.approx(real_alone / 2)  # the mean over the ranks
