import numpy as np
import pytest
import yaml
from PIL import Image

from mflight.functional.masks import rle_decode
from mflight.synthesis.lvis_export import export_pool
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.yolo_files import outline_of
from tests.unit.functional.test_polygons import random_masks
from tests.unit.synthesis.small_pool import fill_pool
from tests.unit.synthesis.squares import CATEGORIES
from tests.unit.synthesis.test_lvis_export import real  # noqa: F401


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return fill_pool(tmp_path_factory.mktemp("pools") / "pool", 4)


def inside_by_even_odd(outline, size_hw):
    """Count, for the centre of each pixel, the edges that its ray to the right crosses."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros(size_hw, bool)
    points = outline * (width, height)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if abs(y1 - y2) > 1e-9:
            inside ^= ((y1 > y) != (y2 > y)) & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside


def test_one_outline_is_a_mask_of_several_parts_with_holes():
    num_joined = 0
    for mask in random_masks(60):
        if mask.any():
            outline = outline_of(mask)
            assert 0 <= outline.min() and outline.max() <= 1
            assert np.array_equal(inside_by_even_odd(outline, mask.shape), mask)
            num_joined += len(np.unique(outline, axis=0)) < len(outline)
    assert num_joined > 20


def read_labels(folder):
    for file in sorted((folder / "labels").iterdir()):
        with Image.open(next((folder / "images").glob(f"{file.stem}.*"))) as image:
            size_hw = image.size[::-1]
        rows = [line.split() for line in file.read_text().splitlines()]
        yield (
            file.stem,
            [
                (int(row[0]), inside_by_even_odd(np.array(row[1:], float).reshape(-1, 2), size_hw))
                for row in rows
            ],
        )


def test_labels_are_the_masks_of_the_pool(pool, tmp_path):
    counts = export_pool(pool, tmp_path / "out", file_format="yolo")
    data = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    reader = PoolReader(pool)
    samples = {ref.sample_id: reader.read(ref) for ref in reader.poll()}
    assert counts.images == len(samples) == 3 and counts.instances == 9
    for stem, instances in read_labels(tmp_path / "out"):
        for (number, mask), annotation in zip(instances, samples[stem].annotations, strict=True):
            name = {entry["id"]: entry["name"] for entry in CATEGORIES}[annotation["category_id"]]
            assert data["names"][number] == name
            assert np.array_equal(mask, rle_decode(annotation["segmentation"]))


def test_classes_have_their_places_in_the_file_to_merge(pool, real, tmp_path):  # noqa: F811
    export_pool(pool, tmp_path / "out", file_format="yolo", merge=real)
    data = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    in_order = sorted(CATEGORIES, key=lambda entry: entry["id"])
    assert data["names"] == {number: entry["name"] for number, entry in enumerate(in_order)}
    assert {"train": "images", "val": "images"}.items() <= data.items()
    (tmp_path / "out/labels.cache").write_text("of ultralytics")
    export_pool(pool, tmp_path / "out", overwrite=True)  # the other format may follow
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["annotations.json", "synthetic"]
