"""A detector that mflight does not know, through the LightningModule that trains its own."""

import functools

import torch

from examples.torchvision_detector import build
from mflight.detection.results import predictions_to_rle
from mflight.functional.masks import rle_decode
from mflight.training.segmentation import InstanceSegmentationModule
from tests.unit.detection.test_mask_rcnn import SIDE, draw_shapes


def test_torchvisions_detector_is_one_of_ours():
    torch.manual_seed(0)
    detector = build(num_classes=3, min_size=SIDE, max_size=SIDE)
    module = InstanceSegmentationModule(model=detector, optimizer=functools.partial(torch.optim.SGD, lr=0.01))
    module.log_dict = module.log = lambda *_, **__: None
    images, targets = draw_shapes()
    targets = [{**target, "image_id": number} for number, target in enumerate(targets)]
    assert torch.isfinite(module.training_step((images[1:], targets[1:]), 0))
    (found,) = module.eval()(images[:1])
    assert found["masks"].dtype == torch.bool and found["masks"].shape[1:] == (SIDE, SIDE)
    first = {key: values[:3] for key, values in found.items()}
    rles = predictions_to_rle(first, (SIDE, SIDE))
    assert [rle_decode(rle).astype(bool).tolist() for rle in rles] == first["masks"].tolist()
