import pytest
import torch
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import batched_nms, roi_align

from mflight.detection.heads import best_after_nms
from mflight.detection.mask_targets import cut_masks
from mflight.detection.predictors import CosineLinear, MaskPredictor


def test_cosine_logits_by_hand():
    layer = CosineLinear(2, 3, temperature=20.0)
    layer.load_state_dict(
        {
            "weight": torch.tensor([[3.0, 4.0], [0.0, 0.1], [-5.0, 0.0]]),
            "bias": torch.tensor([0.0, 1.0, 0.0]),
        }
    )
    assert layer(torch.tensor([[7.0, 0.0]]))[0].tolist() == pytest.approx([12.0, 1.0, -20.0], abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.tensor([[7.0, 1.0]])).dtype == torch.float32


def test_one_mask_channel_has_the_numbers_of_all():
    torch.manual_seed(0)
    ours = MaskPredictor(8, 6, 5)
    stock = MaskRCNNPredictor(8, 6, 5)
    stock.load_state_dict(ours.state_dict())
    features, labels = torch.randn(7, 8, 4, 4), torch.tensor([4, 0, 2, 2, 1, 3, 4])
    found = ours(features, labels)
    assert torch.allclose(found.sigmoid()[:, None], maskrcnn_inference(stock(features), [labels])[0])
    found.sum().backward()
    stock(features)[torch.arange(7), labels].sum().backward()
    for parameter, expected in zip(ours.parameters(), stock.parameters(), strict=True):
        assert torch.allclose(parameter.grad, expected.grad, atol=1e-5)


def test_masks_of_all_classes_never_exist():
    sizes = []
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    )
    with keep:
        MaskPredictor(8, 6, 1204)(torch.rand(16, 8, 4, 4), torch.arange(16)).sum().backward()
    assert max(sizes) < 16 * 1204 * 8 * 8 / 50


def test_masks_cut_in_groups_equal_those_cut_at_once():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(40, 24, 32, generator=generator) > 0.5).to(torch.uint8)
    index = torch.randint(40, (25,), generator=generator)
    corner, side = torch.rand(25, 2, generator=generator) * 16, torch.rand(25, 2, generator=generator) * 8 + 1
    boxes = torch.cat([corner, corner + side], dim=1)
    rois = torch.cat([index[:, None].float(), boxes], dim=1)
    expected = roi_align(masks[:, None].float(), rois, (7, 7), aligned=True)[:, 0]
    assert torch.equal(cut_masks(masks, index, boxes, 7), expected)


@pytest.mark.parametrize("num_kept", [1, 5, 40, 1000])
def test_the_best_after_suppression_are_those_of_the_whole_suppression(num_kept):
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(3000, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 10], dim=1)
    scores, labels = torch.rand(3000, generator=generator), torch.randint(3, (3000,), generator=generator)
    expected = batched_nms(boxes, scores, labels, 0.5)
    assert torch.equal(best_after_nms(boxes, scores, labels, 0.5, num_kept), expected[:num_kept])
    assert len(best_after_nms(boxes[:0], scores[:0], labels[:0], 0.5, num_kept)) == 0
