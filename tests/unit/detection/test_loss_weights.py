import pytest
import torch

from mflight.detection.backbones import MiniFPN
from mflight.detection.loss_weights import image_weights, weigh_rows
from mflight.detection.mask_rcnn import build_mask_rcnn


def target(is_synthetic):
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 16:40, 12:44] = 1
    return {
        "boxes": torch.tensor([[12.0, 16, 44, 40]]),
        "labels": torch.tensor([2]),
        "masks": masks,
        "is_synthetic": is_synthetic,
    }


def gradients(weight):
    """Return the losses of a real and a synthetic image, and the sizes of both images' gradients."""
    torch.manual_seed(0)
    model = build_mask_rcnn(
        backbone=MiniFPN(),
        num_classes=3,
        min_size=None,
        anchor_sizes_px=((12,), (24,), (48,), (96,)),
        box_head_channels=32,
        mask_head_channels=(8,),
        synthetic_loss_weight=weight,
    )
    images = [torch.rand(3, 64, 64, requires_grad=True) for _ in range(2)]
    losses = model(images, [target(False), target(True)])
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}, [image.grad for image in images]


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_the_gradient_of_a_synthetic_image_is_scaled_and_that_of_a_real_one_is_not(weight):
    losses, (real, synthetic) = gradients(1.0)
    weighted_losses, (weighted_real, weighted_synthetic) = gradients(weight)
    assert synthetic.abs().max() > 0
    torch.testing.assert_close(weighted_real, real)
    torch.testing.assert_close(weighted_synthetic, weight * synthetic)
    assert weighted_losses == losses


def test_real_images_alone_and_a_weight_of_one_change_nothing():
    rows = torch.rand(3, requires_grad=True)
    assert image_weights([target(False)] * 2, 0.5) is None
    assert image_weights([target(True)], 1.0) is None
    assert weigh_rows(rows, None, [1, 2]) is rows


def test_each_row_has_the_weight_of_its_image():
    rows = torch.ones(4, 2, requires_grad=True)
    weigh_rows(rows, (0.5, 1.0, 2.0), [1, 0, 3]).sum().backward()
    assert rows.grad[:, 0].tolist() == [0.5, 2.0, 2.0, 2.0]
