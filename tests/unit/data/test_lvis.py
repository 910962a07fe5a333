import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from mflight.data.lvis import LVISAnnotations, LVISDataset
from mflight.data.target import check_target

HEIGHT, WIDTH = 12, 16


def rectangle(x1, y1, x2, y2):
    return [float(v) for v in (x1, y1, x2, y1, x2, y2, x1, y2)]


def rectangle_mask(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.fixture
def files(tmp_path):
    """Two images: polygons and a run-length code in val2017, nothing but negatives directly in the folder."""
    rle = coco_mask.encode(np.asfortranarray(rectangle_mask(4, 6, 10, 9)))
    content = {
        "images": [
            {
                "id": 5,
                "height": HEIGHT,
                "width": WIDTH,
                "coco_url": "http://images.cocodataset.org/val2017/5.png",
                "neg_category_ids": [2],
                "not_exhaustive_category_ids": [8],
            },
            {"id": 6, "height": HEIGHT, "width": WIDTH, "file_name": "6.png", "neg_category_ids": [8, 30]},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 30,
                "bbox": [2, 1, 5, 3],
                "area": 15.0,
                "segmentation": [rectangle(2, 1, 4, 4), rectangle(3, 1, 7, 4)],
            },
            {
                "id": 2,
                "image_id": 5,
                "category_id": 8,
                "bbox": [4, 6, 6, 3],
                "area": 18.0,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
            },
            {
                "id": 3,
                "image_id": 5,
                "category_id": 30,
                "bbox": [14, 10, 2.5, 2],
                "area": 5.0,
                "segmentation": [rectangle(14, 10, 16.5, 12)],
            },
        ],
        "categories": [{"id": 8, "name": "cup"}, {"id": 30, "name": "sea_horse"}, {"id": 2, "name": "tray"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "val2017" / "5.png")
    Image.new("L", (WIDTH, HEIGHT), color=7).save(tmp_path / "images" / "6.png")
    return tmp_path, pixels


def make_dataset(folder, **changes):
    settings = {
        "annotation_file": folder / "annotations.json",
        "image_root": folder / "images",
        "cache_dir": folder / "cache",
    }
    return LVISDataset(**{**settings, **changes})


@pytest.mark.parametrize("is_cached", [True, False])
def test_image_and_target_come_back_as_they_were_written(files, is_cached):
    folder, pixels = files
    dataset = make_dataset(folder, cache_dir=folder / "cache" if is_cached else None)
    image, target = dataset[0]
    check_target(target, (HEIGHT, WIDTH), num_classes=3)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)
    assert target["boxes"].tolist() == [[2, 1, 7, 4], [4, 6, 10, 9], [14, 10, 16, 12]]  # the last is cut at W
    assert target["labels"].tolist() == [3, 2, 3]  # ids 2, 8, 30
    assert target["area"].tolist() == [15, 18, 5]
    assert target["image_id"] == 5 and target["is_synthetic"] is False and target["sample_id"] == ""
    assert target["negative_labels"].tolist() == [1] and target["not_exhaustive_labels"].tolist() == [2]
    assert target["ignore_boxes"].shape == (0, 4)
    expected = [(2, 1, 7, 4), (4, 6, 10, 9), (14, 10, 16, 12)]
    np.testing.assert_array_equal(target["masks"].numpy(), [rectangle_mask(*box) for box in expected])


def test_an_image_without_instances_gives_an_empty_target(files):
    image, target = make_dataset(files[0])[1]
    check_target(target, (HEIGHT, WIDTH), num_classes=3)
    assert image.unique().tolist() == [7] and image.shape == (3, HEIGHT, WIDTH)  # grey becomes RGB
    assert target["masks"].shape == (0, HEIGHT, WIDTH) and target["negative_labels"].tolist() == [2, 3]


def test_counts_and_frequencies_are_computed_where_the_file_has_none(files):
    annotations = LVISAnnotations(files[0] / "annotations.json")
    assert annotations.category_image_counts == {2: 0, 8: 1, 30: 1}
    assert [c.instance_count for c in annotations.categories] == [0, 1, 2]
    assert {c.frequency for c in annotations.categories} == {"rare"}
    assert annotations.image_category_ids(0) == [8, 30] and annotations.image_category_ids(1) == []
    assert annotations.num_instances == 3


def test_a_transform_gets_outlines_in_place_of_masks(files):
    def count_vertices(image, target, outlines):
        assert "masks" not in target
        return image, (len(outlines.vertices), sorted(outlines.masks))

    assert make_dataset(files[0], transform=count_vertices)[0][1] == (12, [1])


def test_workers_share_the_cache_and_see_the_same(files):
    dataset = make_dataset(files[0])
    assert len(pickle.dumps(dataset.annotations)) < 1000
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for (image, target), index in zip(loader, range(2), strict=True):
        assert torch.equal(image, dataset[index][0])
        assert torch.equal(target["masks"], dataset[index][1]["masks"])


def test_missing_files_and_folders_are_named(files):
    folder, _ = files
    with pytest.raises(FileNotFoundError, match=r"annotation_file .*none.json does not exist"):
        make_dataset(folder, annotation_file=folder / "none.json")
    with pytest.raises(FileNotFoundError, match=r"image_root .*nowhere does not exist"):
        make_dataset(folder, image_root=folder / "nowhere")
    (folder / "images" / "6.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 6 has no file: .*images holds none of 6.png"):
        make_dataset(folder).read_image(1)


def test_damaged_and_mistaken_images_are_named(files):
    folder, _ = files
    Image.new("RGB", (3, 2)).save(folder / "images" / "6.png")
    with pytest.raises(ValueError, match=r"6.png is \(2, 3\) \(H, W\), its annotation says \(12, 16\)"):
        make_dataset(folder).read_image(1)
    (folder / "images" / "6.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"6.png cannot be decoded"):
        make_dataset(folder).read_image(1)


def test_what_is_not_in_an_exhaustive_image_is_absent_unless_a_crowd_hides_it(files):
    folder, _ = files
    content = json.loads((folder / "annotations.json").read_text())
    for image in content["images"]:
        image.pop("neg_category_ids", None)
    content["annotations"] = content["annotations"][:1]  # of category 30, label 3
    crowd = {"id": 9, "image_id": 5, "category_id": 8, "bbox": [10, 2, 8, 4], "iscrowd": 1}
    content["annotations"].append({**crowd, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [192]}})
    (folder / "annotations.json").write_text(json.dumps(content))
    dataset = make_dataset(folder)
    shown, empty = dataset[0][1], dataset[1][1]
    check_target(shown, (HEIGHT, WIDTH), num_classes=3)
    assert shown["negative_labels"].tolist() == [1] and shown["not_exhaustive_labels"].tolist() == [2]
    assert shown["ignore_boxes"].tolist() == [[10, 2, 16, 6]]  # 18 lies outside
    assert empty["negative_labels"].tolist() == [1, 2, 3]
