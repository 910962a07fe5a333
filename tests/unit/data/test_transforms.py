import colorsys

import numpy as np
import pytest
import torch

from mflight.data.outlines import Outlines
from mflight.data.target import check_target
from mflight.data.transforms import EvalTransform, TrainTransform

HEIGHT, WIDTH = 20, 30


def make_sample(boxes, dense=False, ignore_boxes=()):
    """Return an image in which the area of every box (x1, y1, x2, y2) is 200 on 10, and its target."""
    image = torch.full((3, HEIGHT, WIDTH), 10, dtype=torch.uint8)
    masks = torch.zeros((len(boxes), HEIGHT, WIDTH), dtype=torch.uint8)
    polygons = []
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        image[:, y1:y2, x1:x2] = 200
        mask[y1:y2, x1:x2] = 1
        polygons += [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(1, len(boxes) + 1),
        "image_id": 3,
        "area": torch.zeros(len(boxes)),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        "is_synthetic": dense,
        "negative_labels": torch.tensor([9]),
        "not_exhaustive_labels": torch.zeros(0, dtype=torch.int64),
        "ignore_boxes": torch.tensor(ignore_boxes, dtype=torch.float32).reshape(-1, 4),
        "sample_id": "",
    }
    if dense:
        return image, {**target, "masks": masks}, None
    outlines = Outlines(
        vertices=torch.tensor(polygons, dtype=torch.float32).reshape(-1, 2),
        vertex_offsets=np.arange(len(boxes) + 1) * 4,
        polygon_offsets=np.arange(len(boxes) + 1),
        masks={},
    )
    return image, target, outlines


@pytest.mark.parametrize("dense", [False, True])
def test_a_mirrored_mask_lies_on_its_mirrored_object(dense):
    transform = TrainTransform(flip_probability=1.0)
    image, target = transform(*make_sample([(2, 3, 9, 8)], dense))
    check_target(target, (HEIGHT, WIDTH), num_classes=9)
    assert target["boxes"].tolist() == [[21, 3, 28, 8]]  # x becomes 30 - x
    assert torch.equal(target["masks"][0] == 1, image[0] > 0.5)
    assert target["area"].tolist() == [35.0]


@pytest.mark.parametrize("dense", [False, True])
def test_a_doubled_image_has_doubled_boxes_and_fourfold_areas(dense):
    transform = TrainTransform(short_sides_px=(40,), flip_probability=0.0)
    image, target = transform(*make_sample([(2, 3, 9, 8)], dense))
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[4, 6, 18, 16]] and target["area"].tolist() == [140.0]


def test_the_long_side_is_capped():
    transform = TrainTransform(short_sides_px=(40,), max_long_side_px=45, flip_probability=0.0)
    assert transform(*make_sample([(2, 3, 9, 8)]))[0].shape == (3, 30, 45)


@pytest.mark.parametrize("dense", [False, True])
def test_a_crop_drops_what_it_leaves_out_from_every_key(dense):
    # 14 columns lie between the two objects, so no crop of 12 columns shows both
    transform = TrainTransform(crop_hw=(HEIGHT, 12), flip_probability=0.0)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(*make_sample([(2, 3, 6, 8), (20, 10, 28, 15)], dense))
        check_target(target, (HEIGHT, 12), num_classes=9)
        drawn = target["masks"].sum(dim=0) == 1  # with no instance left: nowhere
        assert torch.equal(drawn, image[0] > 0.5)
        assert len(target["labels"]) <= 1
        assert target["negative_labels"].tolist() == [9]
        seen.update(target["labels"].tolist())
    assert seen == {1, 2}


@pytest.mark.parametrize("dense", [False, True])
def test_parts_to_ignore_are_scaled_mirrored_and_cut_with_their_image(dense):
    sample = make_sample([(2, 3, 9, 8)], dense, ignore_boxes=[(10, 0, 30, 20), (1, 2, 3, 4)])
    doubled = TrainTransform(short_sides_px=(40,), flip_probability=1.0)(*sample)[1]
    check_target(doubled, (40, 60), num_classes=9)
    assert doubled["ignore_boxes"].tolist() == [[0, 0, 40, 40], [54, 4, 58, 8]]
    assert len(doubled["labels"]) == 1
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, cut = TrainTransform(crop_hw=(HEIGHT, 12), flip_probability=0.0)(*sample)
        check_target(cut, (HEIGHT, 12), num_classes=9)
        left = int(image[0, 3].argmax()) if len(cut["labels"]) else None
        seen.add(len(cut["ignore_boxes"]))
        if left == 2:  # nothing is cut off on the left: columns 0 to 11
            assert cut["ignore_boxes"].tolist() == [[10, 0, 12, 20], [1, 2, 3, 4]]
    assert seen == {1, 2}  # the small part falls out of most crops


def test_a_cut_instance_gets_the_box_of_what_is_left():
    # an L: 1 px wide down to row 18, 10 px wide at rows 16 to 18; a crop of the top leaves the upright alone
    image, target, _ = make_sample([(5, 2, 15, 18)])
    upright = [[5, 2], [6, 2], [6, 16], [15, 16], [15, 18], [5, 18]]
    outlines = Outlines(torch.tensor(upright, dtype=torch.float32), np.array([0, 6]), np.array([0, 1]), {})
    transform = TrainTransform(crop_hw=(10, WIDTH), flip_probability=0.0)
    for seed in range(40):
        torch.manual_seed(seed)
        _, cut = transform(image, target, outlines)
        if len(cut["boxes"]) and cut["masks"][0].sum(dim=1).max() == 1:
            x1, _, x2, y2 = cut["boxes"][0].tolist()
            assert (x1, x2) == (5, 7) and y2 == 10  # at most one pixel beyond the mask
            return
    pytest.fail("no crop of 40 left the upright alone")


def test_a_box_that_fits_keeps_its_fractions():
    image, target, outlines = make_sample([(2, 3, 9, 8)])
    target["boxes"] = torch.tensor([[2.25, 2.75, 9.25, 8.5]])
    assert TrainTransform(flip_probability=0.0)(image, target, outlines)[1]["boxes"].tolist() == [
        [2.25, 2.75, 9.25, 8.5]
    ]


def test_scale_jitter_stays_in_its_range_and_in_the_crop():
    transform = TrainTransform(jitter_range=(0.5, 2.0), crop_hw=(HEIGHT, WIDTH))
    shapes = set()
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = transform(*make_sample([(2, 3, 9, 8), (15, 5, 28, 19)]))
        check_target(target, tuple(image.shape[1:]), num_classes=9)
        shapes.add(tuple(image.shape[1:]))
    assert all(10 <= h <= HEIGHT and 15 <= w <= WIDTH for h, w in shapes) and len(shapes) > 5


def test_an_image_is_scaled_relative_to_where_it_fits_the_crop():
    fits = TrainTransform(jitter_range=(1.0, 1.0), crop_hw=(20, 20), flip_probability=0.0)
    image, target = fits(*make_sample([(0, 0, 30, 20)]))
    assert image.shape == (3, 13, 20)  # 20 x 30 becomes 13.3 x 20
    assert target["boxes"].tolist() == [[0, 0, 20, 13]]
    doubled = TrainTransform(jitter_range=(2.0, 2.0), crop_hw=(20, 20), flip_probability=0.0)
    assert doubled(*make_sample([]))[0].shape == (3, 20, 20)  # 27 x 40, cut
    halved = TrainTransform(jitter_range=(0.5, 0.5), crop_hw=(20, 20), flip_probability=0.0)
    assert halved(*make_sample([]))[0].shape == (3, 7, 10)


def recoloured(color_rgb, strength, num_draws=40):
    """Yield the one colour, uint8 as float, that an image of one colour gets, and its target."""
    transform = TrainTransform(flip_probability=0.0, color_strength=strength)
    for seed in range(num_draws):
        torch.manual_seed(seed)
        image, target, outlines = make_sample([(2, 3, 9, 8)])
        image[:] = torch.tensor(color_rgb, dtype=torch.uint8)[:, None, None]
        image, target = transform(image, target, outlines)
        assert (image == image[:, :1, :1]).all()
        yield (image[:, 0, 0] * 255).tolist(), target


def test_colours_change_by_at_most_their_strength_and_instances_not_at_all():
    kept, target = next(recoloured((120, 80, 60), 0.0))
    assert kept == pytest.approx([120, 80, 60])
    # of an even grey neither contrast nor saturation nor hue can change anything: 100 becomes 80 to 120
    greys = [color[0] for color, _ in recoloured((100, 100, 100), 0.2)]
    assert 79 <= min(greys) < 90 and 110 < max(greys) <= 121
    # brightness, contrast and saturation leave the hue, which turns by a tenth of the strength at most
    before, turns = colorsys.rgb_to_hsv(120, 80, 60)[0], []
    for color, moved in recoloured((120, 80, 60), 0.2):
        turns.append(colorsys.rgb_to_hsv(*color)[0] - before)
        turns[-1] -= round(turns[-1])  # a circle
        assert 0.8**3 * 60 - 3 <= max(color) - min(color) <= 1.2**3 * 60 + 3
        assert moved.keys() == target.keys()
        assert all(np.array_equal(moved[key], target[key]) for key in ("boxes", "masks", "area", "labels"))
    assert -0.026 < min(turns) < -0.01 and 0.01 < max(turns) < 0.026


def test_polygons_and_masks_go_the_same_way():
    transform = TrainTransform(jitter_range=(0.8, 1.5), crop_hw=(HEIGHT, WIDTH), color_strength=0.3)
    for seed in range(10):
        results = []
        for dense in (False, True):
            torch.manual_seed(seed)
            results.append(transform(*make_sample([(2, 3, 12, 13), (15, 5, 28, 19)], dense)))
        (image, drawn), (other, carried) = results
        assert torch.equal(image, other) and torch.equal(drawn["labels"], carried["labels"])
        overlap = (drawn["masks"] & carried["masks"]).sum() / (drawn["masks"] | carried["masks"]).sum()
        assert overlap > 0.7  # nearest-neighbour resizing against polygons, objects of ten pixels


@pytest.mark.parametrize("dense", [False, True])
def test_an_image_without_instances_passes(dense):
    transform = TrainTransform(
        short_sides_px=(18,),
        jitter_range=(0.8, 1.5),
        crop_hw=(16, 16),
        flip_probability=1.0,
        color_strength=0.1,
    )
    image, target = transform(*make_sample([], dense))
    check_target(target, tuple(image.shape[1:]), num_classes=9)


def test_an_outline_outside_of_the_image_is_dropped():
    image, target, outlines = make_sample([(2, 3, 9, 8), (4, 4, 6, 6)])
    outlines.vertices[4:] += 100
    target["boxes"][1] += 100
    kept = TrainTransform(flip_probability=0.0)(image, target, outlines)[1]
    assert kept["labels"].tolist() == [1] and kept["masks"].shape == (1, HEIGHT, WIDTH)


def test_evaluation_only_turns_the_image_into_float_and_draws_no_mask():
    image, target, outlines = make_sample([(2, 3, 9, 8)])
    floats, kept = EvalTransform()(image, target, outlines)
    assert torch.equal((floats * 255).round().to(torch.uint8), image) and floats.dtype == torch.float32
    assert kept["boxes"].tolist() == [[2, 3, 9, 8]] and "masks" not in kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jitter_range": (0.1, 2.0)}, r"jitter_range=\(0.1, 2.0\) needs crop_hw"),
        ({"jitter_range": (2.0, 0.1), "crop_hw": (8, 8)}, r"must rise, got \(2.0, 0.1\)"),
        ({"flip_probability": 1.5}, "flip_probability"),
        ({"short_sides_px": (640, 0)}, "short_sides_px"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**settings)
