from dataclasses import replace

import pytest

from mflight.data.categories import Categories
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.pool_classes import check_pool_classes
from tests.unit.synthesis.squares import categories, make_sample


def write_pool(folder, category_ids, names=None):
    with PoolWriter(folder, "w0") as writer:
        for index, category_id in enumerate(category_ids):
            sample = make_sample(index, category_id=category_id)
            request = {"names": [names[category_id]]} if names else {}
            writer.append(replace(sample, provenance={"request": request}), index=index)
    return folder


def test_a_pool_of_the_same_classes_is_taken_with_names_and_without(tmp_path):
    names = {2: "sea horse", 5: "cup"}  # names are compared after normalisation
    check_pool_classes(write_pool(tmp_path / "named", [2, 5, 5], names), categories())
    check_pool_classes(write_pool(tmp_path / "plain", [2, 5, 5]), categories())
    check_pool_classes(tmp_path / "empty", categories())


def test_the_same_id_under_another_name_is_refused(tmp_path):
    pool = write_pool(tmp_path, [2, 5], {2: "sea_horse", 5: "plate"})
    with pytest.raises(ValueError, match=r"pool_dir=.* category 5 is 'cup' and 'plate'"):
        check_pool_classes(pool, categories())


def test_a_tenth_of_samples_with_unknown_classes_is_refused(tmp_path):
    pool = write_pool(tmp_path, [2] * 18 + [77, 78])
    with pytest.raises(
        ValueError, match=r"2 of 20 samples show category ids that it does not have, \[77, 78\]"
    ):
        check_pool_classes(pool, categories())
    check_pool_classes(write_pool(tmp_path / "one", [2] * 19 + [77]), categories())
    with pytest.raises(ValueError, match=r"20 of 20 samples"):
        check_pool_classes(pool, Categories.from_lvis([{"id": 1, "name": "kite", "image_count": 3}]))
