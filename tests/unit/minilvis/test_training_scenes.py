import numpy as np

from mflight.minilvis.training_scenes import SIDES_PX, draw_captioned_scene, draw_size


def test_sizes_vary_in_both_directions():
    draws = np.random.default_rng(0)
    sizes = {draw_size(draws) for _ in range(200)}
    assert sizes == {(height, width) for height in SIDES_PX for width in SIDES_PX}


def test_the_names_of_a_caption_follow_the_objects():
    draws = np.random.default_rng(0)
    counts = {1: 0, 2: 0}
    for _ in range(100):
        scene, caption = draw_captioned_scene((48, 64), draws)
        assert len(caption.name_spans) == len(scene.placements) == len(scene.masks)
        assert scene.image.shape == (48, 64, 3)
        counts[len(scene.masks)] += 1
    assert counts[1] > counts[2] > 10
