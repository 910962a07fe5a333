import numpy as np
import torch

from mflight.minilvis.judge import Judge, accuracy_by_class, draw_examples, judge_classes
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
