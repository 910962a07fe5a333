"""Box conversions: hand-made boxes, both kinds of array, round trips."""

import numpy as np
import pytest
import torch

from mflight.functional.boxes import box_area, clip_boxes, xywh_to_xyxy, xyxy_to_xywh


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_kind_dtype_and_input_are_kept(kind):
    boxes_xywh = kind([[1.5, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 1.0]])
    before = boxes_xywh.tolist()
    boxes = xywh_to_xyxy(boxes_xywh)
    assert type(boxes) is type(boxes_xywh) and boxes.dtype == boxes_xywh.dtype
    assert boxes.tolist() == [[1.5, 2.0, 5.5, 10.0], [0.0, 0.0, 1.0, 1.0]]
    assert xyxy_to_xywh(boxes).tolist() == before == boxes_xywh.tolist()
    assert box_area(boxes).tolist() == [32.0, 1.0]
    assert clip_boxes(boxes, size_hw=(6, 3)).tolist() == [[1.5, 2.0, 3.0, 6.0], [0.0, 0.0, 1.0, 1.0]]


def test_no_boxes_and_one_box():
    assert xywh_to_xyxy(torch.zeros(0, 4)).shape == (0, 4)
    assert box_area(torch.zeros(0, 4)).shape == (0,)
    assert box_area(np.array([1, 1, 3, 4])) == 6


def test_a_box_outside_of_the_image_becomes_empty():
    clipped = clip_boxes(torch.tensor([[30, 2, 40, 8]]), size_hw=(10, 20))
    assert clipped.tolist() == [[20, 2, 20, 8]]
    assert box_area(clipped).tolist() == [0]


@pytest.mark.parametrize("function", [xywh_to_xyxy, xyxy_to_xywh, box_area])
def test_other_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"last axis of 4 numbers, got shape \(2, 5\)"):
        function(np.zeros((2, 5)))
