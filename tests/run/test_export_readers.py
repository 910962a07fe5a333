"""What other programs make of an export: `uv run --with faster-coco-eval,ultralytics pytest FILE`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mflight.functional.masks import rle_decode
from mflight.synthesis.pool.reader import PoolReader
from tests.unit.synthesis.small_pool import fill_pool

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return fill_pool(tmp_path_factory.mktemp("pools") / "pool", 6, image_format="png")


@pytest.fixture(scope="module")
def masks(pool):
    """By the name of a sample: its class ids and masks."""
    reader = PoolReader(pool)
    samples = [reader.read(ref) for ref in reader.poll()]
    return {
        sample.sample_id: [(a["category_id"], rle_decode(a["segmentation"])) for a in sample.annotations]
        for sample in samples
    }


@pytest.fixture(scope="module")
def exports(pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name, options in {
        "rle": [],
        "polygon": ["--segmentation", "polygon"],
        "yolo": ["--format", "yolo"],
    }.items():
        command = [sys.executable, "-m", "mflight.export", str(pool), str(folder / name), *options]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("package", ["pycocotools.coco", "faster_coco_eval"])
@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_coco_readers_find_every_instance(exports, masks, package, form):
    coco = pytest.importorskip(package, reason=f"{package} is not installed").COCO(
        str(exports / form / "annotations.json")
    )
    assert len(coco.getAnnIds(iscrowd=False)) == len(coco.getAnnIds()) == sum(map(len, masks.values()))
    for image in coco.loadImgs(coco.getImgIds()):
        entries = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]], iscrowd=False))
        for entry, (category_id, mask) in zip(entries, masks[Path(image["file_name"]).stem], strict=True):
            assert entry["category_id"] == category_id and np.array_equal(coco.annToMask(entry), mask)


@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_the_lvis_package_reads_it(exports, masks, form):
    lvis = pytest.importorskip("lvis").LVIS(str(exports / form / "annotations.json"))
    for image in lvis.load_imgs(lvis.get_img_ids()):
        entries = lvis.load_anns(lvis.get_ann_ids(img_ids=[image["id"]]))
        for entry, (category_id, mask) in zip(entries, masks[Path(image["file_name"]).stem], strict=True):
            assert entry["category_id"] == category_id and np.array_equal(lvis.ann_to_mask(entry), mask)


def test_detectron2_finds_images_and_polygons(exports):
    """By the rules of `load_lvis_json` in detectron2 0.6, which is not on PyPI."""
    told = json.loads((exports / "polygon" / "annotations.json").read_text())
    assert told["images"] and told["annotations"]
    for image in told["images"]:
        split_folder, file_name = image["coco_url"].split("/")[-2:]
        assert (exports / "polygon" / split_folder / file_name).is_file()
        assert {"neg_category_ids", "not_exhaustive_category_ids", "height", "width", "id"} <= image.keys()
    for annotation in told["annotations"]:
        assert all(len(part) % 2 == 0 and len(part) >= 6 for part in annotation["segmentation"])
        assert {"bbox", "category_id", "image_id", "id"} <= annotation.keys()


@pytest.mark.parametrize("is_lvis", [True, False])
@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_ultralytics_converts_it(exports, masks, tmp_path, form, is_lvis):
    converter = pytest.importorskip("ultralytics.data.converter", reason="ultralytics is not installed")
    converter.convert_coco(
        str(exports / form), str(tmp_path / "out"), use_segments=True, cls91to80=False, lvis=is_lvis
    )
    files = {path.stem: path for path in (tmp_path / "out" / "labels").rglob("*.txt")}
    assert files.keys() == masks.keys()
    for stem, expected in masks.items():
        rows = [line.split() for line in files[stem].read_text().splitlines()]
        assert sorted(int(row[0]) for row in rows) == sorted(category_id - 1 for category_id, _ in expected)


def test_ultralytics_trains_from_the_yolo_files(exports, masks):
    """Its dataset finds the labels, and the masks that it draws are those of the pool."""
    pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask

    data = check_det_dataset(str(exports / "yolo" / "data.yaml"))
    dataset = YOLODataset(img_path=data["train"], data=data, task="segment", augment=False)
    assert len(dataset.labels) == len(masks)
    for label in dataset.labels:
        expected = masks[Path(label["im_file"]).stem]
        height, width = label["shape"]
        assert len(label["segments"]) == len(expected)
        for segment, (_, mask) in zip(label["segments"], expected, strict=True):
            drawn = polygon2mask((height, width), [(segment * (width, height)).ravel()]) > 0
            overlap = (drawn & mask).sum() / (drawn | mask).sum()
            assert overlap > 0.7  # it draws the far edge of the outline too: a pixel more on small squares
            assert (mask & ~drawn).sum() == 0
