import math

import pytest
import torch

from mflight.functional.blend import RegionBlender, gaussian_window


def test_window_is_the_published_formula():
    window = gaussian_window((3, 4))
    assert window.shape == (3, 4) and window.dtype == torch.float32
    row, column = (math.exp(-(0.5**2) / 16 / 0.02), math.exp(-1 / 9 / 0.02))
    expected = column * row / (2 * math.pi * 0.01)
    assert window[0, 1].item() == pytest.approx(expected, rel=1e-6)
    assert window[1].argmax() in (1, 2)


def test_window_is_symmetric_and_positive_in_the_corners():
    window = gaussian_window((54, 72))
    torch.testing.assert_close(window, window.flip(0).flip(1))
    assert 1e-10 < window[0, 0].item() < 1e-9
    assert window.argmax().item() // 72 in (26, 27)


def test_equal_predictions_stay_as_they_are():
    boxes = [(0, 0, 9, 7), (5, 0, 16, 7), (0, 5, 16, 12)]
    ramp = torch.arange(12 * 16, dtype=torch.float32).reshape(1, 12, 16)
    crops = [ramp[:, y1:y2, x1:x2] for x1, y1, x2, y2 in boxes]
    torch.testing.assert_close(RegionBlender(boxes, (12, 16))(crops), ramp)


def test_overlap_is_the_weighted_mean():
    boxes = [(0, 0, 3, 1), (1, 0, 4, 1)]
    blended = RegionBlender(boxes, (1, 4))([torch.zeros(1, 3), torch.ones(1, 3)])
    window = gaussian_window((1, 3))[0]
    expected = [0.0, window[0] / (window[0] + window[1]), window[1] / (window[1] + window[2]), 1.0]
    torch.testing.assert_close(blended[0], torch.tensor(expected))


def test_half_precision_predictions_blend_in_float32():
    boxes = [(0, 0, 48, 48), (16, 16, 64, 64), (0, 16, 48, 64), (16, 0, 64, 48)]
    blended = RegionBlender(boxes, (64, 64))([torch.ones(4, 48, 48, dtype=torch.float16)] * 4)
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, torch.ones(4, 64, 64))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="row 0, column 2"):
        RegionBlender([(0, 0, 2, 1)], (1, 4))([torch.ones(1, 2)])
    with pytest.raises(ValueError, match=r"predictions\[0\] .* \(1, 2\) cells, got shape \(1, 3\)"):
        RegionBlender([(0, 0, 2, 1)], (1, 2))([torch.ones(1, 3)])
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        gaussian_window((0, 3))
    with pytest.raises(ValueError, match=r"got -1"):
        gaussian_window((2, 3), variance=-1)
