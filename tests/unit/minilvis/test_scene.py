import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_masks

from mflight.minilvis.scene import draw_placement, draw_scene
from mflight.minilvis.species import SPECIES
from mflight.minilvis.textures import BACKGROUNDS, pattern_share

SIZE_HW = (64, 96)


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def fill(polygon, size_hw):
    rles = coco_masks.frPyObjects([polygon.ravel().tolist()], *size_hw)
    return coco_masks.decode(rles)[..., 0].astype(bool)


@pytest.mark.parametrize("species", SPECIES, ids=lambda species: species.name)
def test_the_polygon_of_an_object_agrees_with_its_drawn_mask(species):
    draws = np.random.default_rng(3)
    for _ in range(3):
        placement = draw_placement(species, SIZE_HW, (24.0, 28.0), draws)
        scene = draw_scene([placement], "sand", SIZE_HW, draws)
        assert iou(fill(placement.polygon, SIZE_HW), scene.whole_masks[0]) > 0.85


def test_visible_masks_are_disjoint_and_later_objects_stand_in_front():
    draws = np.random.default_rng(0)
    placements = [draw_placement(SPECIES[i], (48, 48), (20.0, 22.0), draws) for i in (0, 3)]
    scene = draw_scene(placements, "grass", (48, 48), draws)
    assert scene.image.shape == (48, 48, 3) and scene.image.dtype == np.uint8
    assert not (scene.masks[0] & scene.masks[1]).any()
    assert (scene.masks[1] == scene.whole_masks[1]).all()
    assert (scene.masks[0] == (scene.whole_masks[0] & ~scene.whole_masks[1])).all()


def test_only_the_pixels_of_an_object_and_its_edge_are_painted():
    placement = draw_placement(SPECIES[0], SIZE_HW, (15.0, 15.0), np.random.default_rng(1))
    with_object = draw_scene([placement], "water", SIZE_HW, np.random.default_rng(2))
    without = draw_scene([], "water", SIZE_HW, np.random.default_rng(2))
    changed = (with_object.image != without.image).any(axis=-1)
    edge = cv2.dilate(with_object.masks[0].astype(np.uint8), np.ones((3, 3))) > 0
    assert (changed <= edge).all()
    assert changed[with_object.masks[0]].mean() > 0.99


def test_at_least_four_backgrounds_fill_their_size():
    assert len(BACKGROUNDS) >= 4
    for paint in BACKGROUNDS.values():
        canvas = paint((20, 30), np.random.default_rng(0))
        assert canvas.shape == (20, 30, 3) and canvas.std() > 0.01


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="'lava'"):
        draw_scene([], "lava", (8, 8), np.random.default_rng(0))
    with pytest.raises(ValueError, match="'plaid'"):
        pattern_share("plaid", np.zeros(1), np.zeros(1))
