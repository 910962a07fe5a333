import numpy as np
import torch

from mflight.minilvis.autoencoder import to_unit
from mflight.minilvis.judges import (
    Judge,
    Segmenter,
    accuracy_by_class,
    draw_examples,
    draw_labeled_scene,
    judge_classes,
    train_segmenter,
)
from mflight.minilvis.species import SPECIES


def test_accuracy_by_class_by_hand():
    asked, seen = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 3, 1, 1, 0, 0])
    assert accuracy_by_class(asked, seen) == {
        SPECIES[0].name: 1 / 2,
        SPECIES[1].name: 2 / 3,
        SPECIES[2].name: 0.0,
    }


def test_the_judge_names_one_class_for_each_example():
    images, classes = draw_examples(5, np.random.default_rng(0))
    assert images.shape == (5, 3, 64, 64) and classes.shape == (5,)
    named = judge_classes(Judge(), images)
    assert named.shape == (5,) and set(named.tolist()) <= set(range(len(SPECIES)))


class Painted(Segmenter):
    """Sees objects where an image is bright."""

    def objects(self, image):
        return image[..., 0] > 128


def test_it_finds_the_largest_object_in_a_box_and_a_little_beyond():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[4:12, 4:12] = 255  # the object
    image[4:6, 14:16] = 255  # a fragment beside it
    image[20:30, 20:30] = 255  # another object
    boxes = np.array([[7, 4, 12, 12], [20, 20, 30, 30], [0, 16, 8, 31]], dtype=float)
    first, second, nothing = Painted().find(image, boxes)
    assert first.sum() == 8 * 7 and first[4:12, 5:12].all()  # 2 px to the left of its box, no more
    assert second.sum() == 100 and second[20:30, 20:30].all()
    assert not nothing.any()


def test_scenes_tell_where_their_objects_are():
    draws = np.random.default_rng(0)
    for _ in range(5):
        image, objects = draw_labeled_scene(draws)
        assert image.shape == (128, 128, 3) and objects.shape == (128, 128)
        assert 0.02 < objects.mean() < 0.9


def test_training_teaches_it_to_tell_objects_from_background():
    segmenter, draws = train_segmenter(num_steps=25, batch_size=4), np.random.default_rng(9)
    images, objects = (
        np.stack(one) for one in zip(*(draw_labeled_scene(draws) for _ in range(8)), strict=True)
    )
    with torch.no_grad():
        likelihood = segmenter(to_unit(images))[:, 0].sigmoid().numpy()
    assert likelihood[objects].mean() > likelihood[~objects].mean() + 0.1
