import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from mflight.detection.results import predictions_to_rle


def decode(rles):
    return np.stack([coco_mask.decode(rle) for rle in rles])


def test_a_full_mask_is_its_box_and_a_half_mask_half_of_it():
    masks = torch.ones(2, 1, 28, 28)
    masks[1, :, :, 14:] = 0
    boxes = torch.tensor([[2.0, 1.0, 8.0, 5.0], [2.0, 1.0, 8.0, 5.0]])
    full, half = decode(predictions_to_rle({"boxes": boxes, "roi_masks": masks}, (10, 12)))
    expected = np.zeros((10, 12), dtype=np.uint8)
    expected[1:5, 2:8] = 1
    np.testing.assert_array_equal(full, expected)
    expected[:, 5:] = 0
    np.testing.assert_array_equal(half, expected)


def test_pasting_agrees_with_grid_sample_on_random_boxes_and_masks():
    generator = torch.Generator().manual_seed(0)
    height, width = 60, 80
    corners = (
        torch.rand(60, 2, 2, generator=generator) * torch.tensor([100.0, 80.0]) - 10
    )  # some reach outside
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    coarse = torch.rand(60, 1, 7, 7, generator=generator)
    masks = F.interpolate(coarse, size=28, mode="bilinear")
    x1, y1, x2, y2 = boxes.T[:, :, None]
    x = ((torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1)[:, None, :].expand(-1, height, -1)
    y = ((torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1)[:, :, None].expand(-1, -1, width)
    expected = F.grid_sample(masks, torch.stack([x, y], dim=-1), align_corners=False)[:, 0] > 0.5
    rles = predictions_to_rle({"boxes": boxes, "roi_masks": masks}, (height, width))
    assert (torch.from_numpy(decode(rles)) != expected).sum() <= 3  # of 288,000 pixels: ties at the threshold


def test_runs_that_touch_the_foot_and_the_head_of_columns_are_joined():
    boxes = torch.tensor([[-5.0, -5.0, 30.0, 30.0]])
    rle = predictions_to_rle({"boxes": boxes, "roi_masks": torch.ones(1, 1, 4, 4)}, (6, 7))[0]
    whole = coco_mask.encode(np.ones((6, 7), dtype=np.uint8, order="F"))
    assert rle == {"size": [6, 7], "counts": whole["counts"].decode()}


def test_masks_outside_of_the_image_and_empty_ones_are_empty():
    boxes = torch.tensor([[50.0, 50.0, 60.0, 60.0], [-9.0, 1.0, -3.0, 4.0], [1.0, 1.0, 4.0, 4.0]])
    masks = torch.ones(3, 1, 28, 28)
    masks[2] = 0.5  # not above the threshold
    assert not decode(predictions_to_rle({"boxes": boxes, "roi_masks": masks}, (10, 12))).any()


def test_only_the_masks_that_are_needed_are_made():
    boxes = torch.tensor([[2.0, 1.0, 8.0, 5.0], [0.0, 0.0, 4.0, 4.0], [3.0, 3.0, 9.0, 9.0]])
    prediction = {"boxes": boxes, "roi_masks": torch.ones(3, 1, 28, 28)}
    every = predictions_to_rle(prediction, (10, 12))
    some = predictions_to_rle(prediction, (10, 12), needed=np.array([True, False, True]))
    assert some == [every[0], None, every[2]]


def test_whole_masks_are_compressed_as_they_are():
    masks = torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    prediction = {"boxes": torch.zeros(3, 4), "masks": masks}
    np.testing.assert_array_equal(decode(predictions_to_rle(prediction, (10, 12))), masks.numpy())
    with pytest.raises(ValueError, match=r"size of their image, \(10, 11\), got \(10, 12\)"):
        predictions_to_rle(prediction, (10, 11))


def test_no_detections_give_no_masks():
    nothing = {"boxes": torch.zeros(0, 4), "roi_masks": torch.zeros(0, 1, 28, 28)}
    assert predictions_to_rle(nothing, (10, 12)) == []


def test_faulty_input_is_refused():
    prediction = {"boxes": torch.zeros(2, 4), "roi_masks": torch.zeros(1, 1, 28, 28)}
    with pytest.raises(ValueError, match="got 2 boxes and 1 masks"):
        predictions_to_rle(prediction, (10, 12))
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.5"):
        predictions_to_rle(prediction, (10, 12), threshold=1.5)
