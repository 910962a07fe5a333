"""Attention and image to masks: two drawn discs, regions of two sizes, settings, errors."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mflight.functional.layout import MosaicLayout
from mflight.functional.masks import mask_to_box
from mflight.synthesis.labeler import AttentionLabeler

LAYOUT = MosaicLayout(
    canvas_hw=(64, 160), region_boxes=((0, 0, 88, 64), (72, 0, 160, 64)), base_region_hw=(64, 80)
)
CENTERS_XY = ((36, 30), (120, 36))


def disc(center_xy: tuple[float, float], radius: float, size_hw: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    return (columns - center_xy[0]) ** 2 + (rows - center_xy[1]) ** 2 < radius**2


def scene() -> tuple[np.ndarray, list[np.ndarray], list[list[torch.Tensor]]]:
    """A canvas with a red disc in each region, their masks, and blurry attention at two resolutions."""
    canvas_masks = [disc(center, 18, LAYOUT.canvas_hw) for center in CENTERS_XY]
    image = np.where((canvas_masks[0] | canvas_masks[1])[..., None], [200, 40, 40], [30, 120, 160])
    truths, attention_maps = [], []
    for mask, (x1, y1, x2, y2) in zip(canvas_masks, LAYOUT.region_boxes, strict=True):
        truth = mask[y1:y2, x1:x2]
        truths.append(truth)
        pixels = torch.from_numpy(truth)[None].float()
        attention_maps.append([torch.nn.functional.avg_pool2d(pixels, stride)[0] * 0.3 for stride in (4, 8)])
    return image.astype(np.uint8), truths, attention_maps


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def test_masks_lie_on_the_objects_and_the_solver_sharpens_them():
    image, truths, attention_maps = scene()
    regions = AttentionLabeler(sigma_spatial_px=8.0).label(image, LAYOUT, attention_maps)
    assert len(regions) == 2
    for region, truth in zip(regions, truths, strict=True):
        assert region.heat_map.shape == truth.shape and region.heat_map.dtype == np.uint8
        assert region.mask.dtype == region.coarse_mask.dtype == np.bool_
        assert iou(region.mask, truth) > max(0.97, iou(region.coarse_mask, truth))


def test_no_pass_keeps_the_coarse_mask():
    image, _, attention_maps = scene()
    for region in AttentionLabeler(num_bilateral_passes=0).label(image, LAYOUT, attention_maps):
        np.testing.assert_array_equal(region.mask, region.coarse_mask)


def test_a_higher_threshold_gives_a_smaller_mask():
    image, _, attention_maps = scene()
    areas = []
    for threshold in (0.2, 0.5, 0.8):
        labeler = AttentionLabeler(threshold=threshold, num_bilateral_passes=0)
        areas.append(labeler.label(image, LAYOUT, attention_maps)[0].mask.sum())
    assert areas[0] > areas[1] > areas[2] > 0


def test_no_attention_gives_an_empty_mask():
    image, _, attention_maps = scene()
    attention_maps[1] = [torch.zeros_like(maps) for maps in attention_maps[1]]
    first, second = AttentionLabeler().label(image, LAYOUT, attention_maps)
    assert first.mask.any() and not second.mask.any() and second.heat_map.max() == 0


def test_regions_of_different_sizes_keep_their_order():
    layout = MosaicLayout((64, 160), ((0, 0, 64, 64), (56, 0, 160, 64)), (64, 80))
    image, _, _ = scene()
    maps = [[torch.zeros(16, 16)], [torch.zeros(16, 26)]]
    maps[0][0][4:8, 4:8] = 1.0
    maps[1][0][8:12, 20:24] = 1.0
    first, second = AttentionLabeler(num_bilateral_passes=0).label(image, layout, maps)
    assert first.mask.shape == (64, 64) and first.mask[18:30, 18:30].all()
    assert second.mask.shape == (64, 104) and second.mask[34:46, 82:94].all()


def test_a_batch_of_canvases_is_the_canvases_one_by_one():
    layout = MosaicLayout((64, 160), ((0, 0, 64, 64), (56, 0, 160, 64)), (64, 80))
    image, _, attention_maps = scene()
    other_maps = [[torch.rand(16, 16), torch.rand(8, 8)], [torch.rand(16, 26), torch.rand(8, 13)]]
    labeler = AttentionLabeler(sigma_spatial_px=8.0)
    batch = labeler.label_batch([image, image[::-1]], [LAYOUT, layout], [attention_maps, other_maps])
    alone = [labeler.label(image, LAYOUT, attention_maps), labeler.label(image[::-1], layout, other_maps)]
    for together, separate in zip(batch, alone, strict=True):
        for first, second in zip(together, separate, strict=True):
            np.testing.assert_array_equal(first.heat_map, second.heat_map)
            np.testing.assert_array_equal(first.mask, second.mask)


def test_a_refiner_is_asked_on_the_canvas_and_only_for_masks_that_have_a_box():
    image, truths, attention_maps = scene()
    attention_maps[0] = [torch.zeros_like(maps) for maps in attention_maps[0]]
    expected = AttentionLabeler(sigma_spatial_px=8.0).label(image, LAYOUT, attention_maps)
    asked = []

    def refiner(canvas, boxes):
        asked.append((canvas.shape, boxes.tolist()))
        masks = np.zeros((len(boxes), *canvas.shape[:2]), bool)
        masks[:, 10:50, 60:130] = True  # reaches out of the second region, which begins at column 72
        return masks

    first, second = AttentionLabeler(sigma_spatial_px=8.0, refiner=refiner).label(
        image, LAYOUT, attention_maps
    )
    x1, y1, x2, y2 = mask_to_box(expected[1].mask)
    assert asked == [((64, 160, 3), [[x1 + 72.0, y1, x2 + 72.0, y2]])]
    assert not first.mask.any()
    assert second.mask.shape == truths[1].shape and second.mask[10:50, :58].all()
    assert second.mask.sum() == 40 * 58
    np.testing.assert_array_equal(second.coarse_mask, expected[1].coarse_mask)


def test_the_masks_that_a_device_refines_together_are_those_refined_one_by_one(monkeypatch):
    """Three regions of two sizes, by the way of a GPU, on the tensors of a CPU."""
    layout = MosaicLayout((64, 240), ((0, 0, 88, 64), (72, 0, 160, 64), (152, 0, 240, 56)), (64, 80))
    image, _, attention_maps = scene()
    image = np.concatenate([image, image[:, ::2]], axis=1)
    image = image + np.random.default_rng(0).integers(0, 9, image.shape, np.uint8)  # more vertices
    maps = [*attention_maps, [torch.rand(14, 22), torch.rand(7, 11)]]
    labeler = AttentionLabeler(sigma_spatial_px=8.0, sigma_luma=12.0, smoothness=128.0)
    expected = labeler.label(image, layout, maps)
    monkeypatch.setattr(labeler, "_refine", labeler._refine_together)
    for together, alone in zip(labeler.label(image, layout, maps), expected, strict=True):
        assert together.mask.shape == alone.mask.shape and together.mask.dtype == np.bool_
        assert (alone.mask != alone.coarse_mask).any()
        np.testing.assert_array_equal(together.mask, alone.mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_gives_the_masks_of_the_cpu():
    image, _, attention_maps = scene()
    on_device = [[maps.cuda() for maps in maps_of_region] for maps_of_region in attention_maps]
    labeler = AttentionLabeler(sigma_spatial_px=8.0)
    expected = labeler.label(image, LAYOUT, attention_maps)
    for ours, theirs in zip(labeler.label(image, LAYOUT, on_device), expected, strict=True):
        np.testing.assert_array_equal(ours.heat_map, theirs.heat_map)
        np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_errors_name_the_value():
    with pytest.raises(ValidationError, match=r"less than 1 .*input_value=1\.0"):
        AttentionLabeler(threshold=1.0)
    with pytest.raises(ValidationError, match=r"'otsu'.*input_value='triangle'"):
        AttentionLabeler(threshold="triangle")
    with pytest.raises(ValidationError, match=r"greater than or equal to 0 .*input_value=-1"):
        AttentionLabeler(num_bilateral_passes=-1)
    image, _, attention_maps = scene()
    with pytest.raises(ValueError, match=r"canvas 0 is of size \(64, 160\), its image of \(64, 150\)"):
        AttentionLabeler().label(image[:, :150], LAYOUT, attention_maps)
    with pytest.raises(ValueError, match="layout of canvas 0 has 2 regions, got the attention of 1"):
        AttentionLabeler().label(image, LAYOUT, attention_maps[:1])
    attention_maps[1][0][3, 3] = torch.nan
    with pytest.raises(ValueError, match="got nan to nan in canvas 0, region 1, resolution 0"):
        AttentionLabeler().label(image, LAYOUT, attention_maps)
