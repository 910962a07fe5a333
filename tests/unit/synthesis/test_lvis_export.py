import json

import lvis
import numpy as np
import pytest
from PIL import Image

from mflight.data.lvis import LVISDataset
from mflight.functional.masks import rle_decode
from mflight.synthesis.lvis_export import ExportCounts, export_pool
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.small_pool import fill_pool
from tests.unit.synthesis.squares import CATEGORIES, make_sample

NUM_REQUESTS = 6  # of which 0 1 2 4 5 give a sample with three instances


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return fill_pool(tmp_path_factory.mktemp("pools") / "pool", NUM_REQUESTS)


@pytest.fixture
def real(tmp_path):
    """An LVIS file with two images: ids far from 1, a class whose group changes, sections of its own."""
    folder = tmp_path / "real"
    (folder / "train2017").mkdir(parents=True)
    url = "http://images.cocodataset.org/train2017/000000000{}.jpg"
    images, annotations = [], []
    for number, image_id in enumerate((900, 40)):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(folder / f"train2017/000000000{image_id}.jpg")
        images.append(
            {"id": image_id, "height": 10, "width": 20, "coco_url": url.format(image_id)}
            | {"neg_category_ids": [9], "not_exhaustive_category_ids": []}
        )
        box = {"bbox": [1, 1, 4, 3], "area": 12.0, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}
        annotations.append({"id": 70 - number, "image_id": image_id, "category_id": 9, **box})
    categories = [
        {**entry, "frequency": letter, "instance_count": 3 * entry["image_count"], "synset": "x.n.01"}
        for entry, letter in zip(CATEGORIES, "rfrc", strict=True)
    ]
    categories[2] |= {"image_count": 10, "instance_count": 30}
    text = json.dumps(
        {"info": {"é": [1.50, "<&"]}, "images": images, "annotations": annotations, "categories": categories}
    )
    (folder / "train.json").write_text(text)
    return folder / "train.json"


def read(folder):
    return json.loads((folder / "annotations.json").read_text())


def samples_of(pool):
    reader = PoolReader(pool)
    return [reader.read(ref) for ref in reader.poll()]


@pytest.mark.parametrize("segmentation", ["rle", "polygon"])
def test_lvis_and_our_dataset_read_the_masks_of_the_pool(pool, tmp_path, segmentation):
    counts = export_pool(pool, tmp_path / "out", segmentation=segmentation)
    assert counts == ExportCounts(images=5, instances=15, merged_images=0, unreadable=0)
    reference = lvis.LVIS(str(tmp_path / "out/annotations.json"))
    dataset = LVISDataset(annotation_file=tmp_path / "out/annotations.json", image_root=tmp_path / "out")
    assert len(dataset) == len(reference.get_img_ids()) == 5
    for index, sample in enumerate(samples_of(pool)):
        image, target = dataset[index]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), sample.image)
        entries = reference.load_anns(reference.get_ann_ids(img_ids=[target["image_id"]]))
        assert [entry["category_id"] for entry in entries] == [a["category_id"] for a in sample.annotations]
        for own, entry, annotation in zip(target["masks"], entries, sample.annotations, strict=True):
            mask = rle_decode(annotation["segmentation"])
            assert np.array_equal(own.numpy(), mask)
            assert np.array_equal(reference.ann_to_mask(entry), mask)
            assert entry["area"] == mask.sum() and entry["bbox"] == annotation["bbox"]
        assert dataset.categories.with_frequency("rare") == tuple(dataset.categories)


def test_images_are_the_pools_own_bytes_and_classes_have_names_and_definitions(pool, tmp_path):
    export_pool(pool, tmp_path / "out")
    (shard,) = pool.glob("*.tar")
    for file in (tmp_path / "out/synthetic").iterdir():
        assert file.read_bytes() in shard.read_bytes()
    told = {entry["name"]: entry["def"] for entry in read(tmp_path / "out")["categories"]}
    assert told.items() <= {entry["name"]: entry["def"] for entry in CATEGORIES}.items() and len(told) > 2


def test_stock_readers_find_instances_and_images(pool, tmp_path):
    export_pool(pool, tmp_path / "out")
    told = read(tmp_path / "out")
    assert {entry["iscrowd"] for entry in told["annotations"]} == {0}
    for image in told["images"]:
        assert image["coco_url"] == f"http://images.cocodataset.org/{image['file_name']}"
        assert (tmp_path / "out" / image["file_name"]).is_file()


def test_only_own_classes_are_known_and_their_objects_are_not_counted(pool, tmp_path):
    export_pool(pool, tmp_path / "out")
    for image, sample in zip(read(tmp_path / "out")["images"], samples_of(pool), strict=True):
        asked_for = {region["category_id"] for region in sample.regions}
        assert image["neg_category_ids"] == []
        assert image["not_exhaustive_category_ids"] == sorted(asked_for)
        assert sample.regions[0]["rejected"] and sample.regions[0]["category_id"] in asked_for


def test_merging_adds_behind_the_old_entries_and_updates_the_counts(pool, real, tmp_path):
    counts = export_pool(pool, tmp_path / "out", merge=real)
    assert counts.merged_images == 2
    before, after = json.loads(real.read_text()), read(tmp_path / "out")
    assert after["info"] == before["info"]
    for key in ("images", "annotations"):
        assert after[key][:2] == before[key]
    assert [image["id"] for image in after["images"][2:]] == [901, 902, 903, 904, 905]
    assert [one["id"] for one in after["annotations"][2:]] == list(range(71, 86))
    for old, new in zip(before["categories"], after["categories"], strict=True):
        own = [one for one in after["annotations"][2:] if one["category_id"] == old["id"]]
        assert new["instance_count"] == old["instance_count"] + len(own)
        assert new["image_count"] == old["image_count"] + len({one["image_id"] for one in own})
        assert {**old, **{key: new[key] for key in ("image_count", "instance_count")}} == new
    by_id = {entry["id"]: entry for entry in after["categories"]}
    assert by_id[9]["image_count"] > 10 and by_id[9]["frequency"] == "r"  # as by its real images
    export_pool(pool, tmp_path / "updated", merge=real, update_frequency=True)
    assert {entry["id"]: entry["frequency"] for entry in read(tmp_path / "updated")["categories"]}[9] == "c"


def test_a_merged_dataset_is_read_once_the_images_lie_together(pool, real, tmp_path):
    export_pool(pool, tmp_path / "out", merge=real)
    (real.parent / "synthetic").symlink_to(tmp_path / "out/synthetic")
    dataset = LVISDataset(annotation_file=tmp_path / "out/annotations.json", image_root=real.parent)
    assert [dataset[index][0].shape[1:] for index in range(2)] == [(10, 20)] * 2
    assert [len(dataset[index][1]["labels"]) for index in range(7)] == [1, 1, 3, 3, 3, 3, 3]
    assert lvis.LVIS(str(tmp_path / "out/annotations.json")).get_ann_ids(img_ids=[901]) == [71, 72, 73]


def test_a_class_without_counts_is_counted_from_the_file(pool, real, tmp_path):
    told = json.loads(real.read_text())
    for entry in told["categories"]:
        del entry["image_count"], entry["instance_count"], entry["frequency"]
    real.write_text(json.dumps(told))
    export_pool(pool, tmp_path / "out", merge=real)
    (nine,) = (entry for entry in read(tmp_path / "out")["categories"] if entry["id"] == 9)
    own = [one["image_id"] for one in read(tmp_path / "out")["annotations"] if one["category_id"] == 9]
    assert (nine["instance_count"], nine["image_count"]) == (len(own), len(set(own)))
    assert set(own) >= {900, 40}


def test_nothing_half_written_stays(pool, real, tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    real.write_text(real.read_text().replace('"name": "kite"', '"name": "paper_kite"'))
    with pytest.raises(ValueError, match="category 11 'kite', which is 'paper_kite' in the file to merge"):
        export_pool(pool, folder / "out", merge=real)
    assert list(folder.iterdir()) == []


def test_an_existing_folder_is_refused_and_survives_a_failed_overwrite(pool, real, tmp_path):
    out = tmp_path / "out"
    export_pool(pool, out, merge=real)
    before = (out / "annotations.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"out exists already; --overwrite replaces it"):
        export_pool(pool, out)
    real.write_text("[]")
    with pytest.raises(ValueError, match=r"train\.json is no LVIS- or COCO-format annotation file"):
        export_pool(pool, out, merge=real, overwrite=True)
    assert (out / "annotations.json").read_bytes() == before
    export_pool(pool, out, overwrite=True)
    assert len(read(out)["images"]) == 5
    assert sorted(path.name for path in out.iterdir()) == ["annotations.json", "synthetic"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "real"}


def test_only_an_earlier_export_is_overwritten_never_what_is_read(pool, real, tmp_path):
    for output in (pool, pool.parent):
        with pytest.raises(ValueError, match=f"the output must not hold what is read, but {pool} lies in"):
            export_pool(pool, output, overwrite=True)
    with pytest.raises(ValueError, match=r"train\.json lies in"):
        export_pool(pool, real.parent, merge=real, overwrite=True)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"mine also holds 'thesis\.tex'"):
        export_pool(pool, folder, overwrite=True)
    with pytest.raises(ValueError, match=r"thesis\.tex is a file"):
        export_pool(pool, folder / "thesis.tex", overwrite=True)
    assert (folder / "thesis.tex").read_text() == "precious" and len(samples_of(pool)) == 5


def test_a_class_without_a_name_is_told(pool, real, tmp_path):
    real.write_text(real.read_text().replace('"name": "kite", ', ""))
    with pytest.raises(ValueError, match="a category without 'name'"):
        export_pool(pool, tmp_path / "out", merge=real)


def test_missing_inputs_are_named(pool, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no pool: it has no pool\.db"):
        export_pool(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"found no file at .*none\.json"):
        export_pool(pool, tmp_path / "out", merge=tmp_path / "none.json")


def test_a_damaged_sample_is_left_out_and_counted(tmp_path):
    with PoolWriter(tmp_path / "pool", "w0", image_format="png") as writer:
        for index in range(3):
            writer.append(make_sample(index), index=index)
    (shard,) = (tmp_path / "pool").glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[700] ^= 255
    shard.write_bytes(data)
    counts = export_pool(tmp_path / "pool", tmp_path / "out")
    assert (counts.images, counts.unreadable) == (2, 1)
    told = read(tmp_path / "out")
    assert [image["file_name"] for image in told["images"]] == [
        "synthetic/7-00000001.png",
        "synthetic/7-00000002.png",
    ]
    assert [(entry["id"], entry["name"]) for entry in told["categories"]] == [(2, "category_2")]
