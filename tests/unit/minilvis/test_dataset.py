import json
import signal
from collections import Counter, defaultdict

import numpy as np
import pytest
from lvis import LVIS
from PIL import Image
from pycocotools import mask as coco_masks

from mflight.minilvis.dataset import IMAGE_PX, MiniLVISSize, _draw_train, build_minilvis, digest
from mflight.minilvis.species import SPECIES

pytestmark = pytest.mark.filterwarnings("ignore:.*__array__ implementation.*:DeprecationWarning")

TINY = MiniLVISSize(train_images={"rare": (1, 2), "common": (2, 3), "frequent": (3, 4)}, val_instances=1)


def read(world, split):
    return json.loads((world / f"{split}.json").read_text())


def frequency_by_lvis(image_count):
    """LVIS's own rule, arXiv:1908.03195."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


def test_a_third_of_the_classes_has_each_frequency_by_the_rule_of_lvis(world):
    document = read(world, "train")
    shown = defaultdict(set)
    for annotation in document["annotations"]:
        shown[annotation["category_id"]].add(annotation["image_id"])
    for category in document["categories"]:
        assert category["image_count"] == len(shown[category["id"]])
        assert category["frequency"] == frequency_by_lvis(category["image_count"]), category["name"]
    counts = Counter(category["frequency"] for category in document["categories"])
    assert counts == dict.fromkeys("rcf", len(SPECIES) // 3)


def test_validation_is_balanced_with_at_least_15_instances_of_every_class(world):
    counts = Counter(annotation["category_id"] for annotation in read(world, "val")["annotations"])
    assert len(counts) == len(SPECIES)
    assert min(counts.values()) >= 15
    assert max(counts.values()) <= 2 * min(counts.values())


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_fields_of_lvis_are_complete(world, split):
    document = read(world, split)
    for category in document["categories"]:
        assert category["synset"].endswith(".n.01") and category["def"] and category["synonyms"]
        own = [a for a in document["annotations"] if a["category_id"] == category["id"]]
        assert category["instance_count"] == len(own)
    present = defaultdict(set)
    for annotation in document["annotations"]:
        present[annotation["image_id"]].add(annotation["category_id"])
    for image in document["images"]:
        assert len(image["neg_category_ids"]) == 14
        assert not set(image["neg_category_ids"]) & present[image["id"]]
        assert set(image["not_exhaustive_category_ids"]) <= present[image["id"]]
        assert (image["height"], image["width"]) == (IMAGE_PX, IMAGE_PX)
    if split == "train":
        assert any(image["not_exhaustive_category_ids"] for image in document["images"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_reader_of_the_lvis_package_opens_the_file_and_its_masks_fit_boxes_and_areas(world, split):
    lvis = LVIS(str(world / f"{split}.json"))
    kinds = Counter()
    for annotation in list(lvis.anns.values())[::7]:
        kinds[type(annotation["segmentation"]).__name__] += 1
        mask = coco_masks.decode(lvis.ann_to_rle(annotation))
        assert abs(mask.sum() - annotation["area"]) <= 0.12 * annotation["area"] + 8
        x, y, w, h = annotation["bbox"]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.subtract(found, [x, y, x + w, y + h])).max() <= 2
    assert set(kinds) == {"list", "dict"}


def test_every_image_is_there_with_one_to_six_objects(world):
    document = read(world, "train")
    counts = Counter(annotation["image_id"] for annotation in document["annotations"])
    assert set(counts.values()) <= set(range(1, 7))
    assert {image["id"] for image in document["images"]} == set(counts)
    for image in document["images"][::25]:
        with Image.open(world / image["file_name"]) as opened:
            assert opened.size == (IMAGE_PX, IMAGE_PX) and opened.mode == "RGB"


def test_a_rare_class_shows_at_most_two_breeds_in_training():
    size = MiniLVISSize(train_images={"rare": (10, 10), "common": (1, 1), "frequent": (10, 10)})
    breeds = defaultdict(set)
    for scene in _draw_train(size, np.random.default_rng(0)):
        for placement in scene.placements:
            breeds[placement.species].add(placement.breed_index)
    rare = [len(seen) for species, seen in breeds.items() if species.frequency == "rare"]
    frequent = [len(seen) for species, seen in breeds.items() if species.frequency == "frequent"]
    assert max(rare) <= 2 and max(frequent) == 3


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path):
    first, second, other = (
        digest(build_minilvis(tmp_path / name, seed=seed, size=TINY))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second != other


def test_a_second_build_leaves_the_folder_alone(tmp_path):
    folder = build_minilvis(tmp_path / "world", size=TINY)
    before = (folder / "train.json").stat().st_mtime_ns
    build_minilvis(folder, size=TINY)
    assert (folder / "train.json").stat().st_mtime_ns == before


def test_another_seed_in_an_existing_folder_is_told_with_both_values(tmp_path):
    build_minilvis(tmp_path / "world", seed=3, size=TINY)
    with pytest.raises(ValueError, match=r"'seed': 4.*it holds.*'seed': 3"):
        build_minilvis(tmp_path / "world", seed=4, size=TINY)


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="mine"):
        build_minilvis(tmp_path / "mine", size=TINY)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_minilvis(tmp_path / "world")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert list(tmp_path.iterdir()) == []
