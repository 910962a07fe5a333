import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mflight.data.outlines import Outlines

HEIGHT, WIDTH = 40, 60


@pytest.mark.parametrize("seed", range(40))
def test_polygons_are_drawn_to_the_pixel_as_coco_draws_them_in_the_whole_image(seed):
    draws = np.random.default_rng(seed)
    polygons = [
        # corners in and out of the image, on and between the edges of pixels
        [
            np.round(draws.uniform(-20, 80, (draws.integers(3, 9), 2)), draws.integers(3))
            for _ in range(number)
        ]
        for number in (1, 2, 3)
    ]
    parts = [part for instance in polygons for part in instance]
    outlines = Outlines(
        vertices=torch.tensor(np.concatenate(parts), dtype=torch.float32),
        vertex_offsets=np.cumsum([0, *map(len, parts)]),
        polygon_offsets=np.array([0, 1, 3, 6]),
        masks={},
    )
    for drawn, instance in zip(outlines.draw((HEIGHT, WIDTH)), polygons, strict=True):
        flat = [part.astype(np.float32).astype(float).ravel().tolist() for part in instance]
        code = coco_mask.merge(coco_mask.frPyObjects(flat, HEIGHT, WIDTH))
        np.testing.assert_array_equal(drawn.numpy(), coco_mask.decode(code))


def test_a_polygon_outside_of_the_image_draws_nothing():
    vertices = torch.tensor([[70.0, 5], [80, 5], [80, 9], [5, -9], [9, -9], [9, -2]])
    outlines = Outlines(vertices, np.array([0, 3, 6]), np.array([0, 1, 2]), {})
    assert outlines.draw((HEIGHT, WIDTH)).sum() == 0
