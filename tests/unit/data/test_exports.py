"""What the check of a dataset prints about the files that common tools write, as a stranger reads it."""

import io

import pytest
from PIL import Image
from rich.console import Console

from mflight.check_data import print_summary
from tests.unit.data.test_check_data import check

HEIGHT, WIDTH = 48, 64
SPLITS = {"train": range(12), "val": range(12, 16)}
SQUARE = [4.0, 4.0, 24.0, 4.0, 24.0, 24.0, 4.0, 24.0]  # 20 x 20 px
RUNS = [
    4 * HEIGHT + 4,
    *[20, HEIGHT - 20] * 19,
    20,
    (WIDTH - 24) * HEIGHT + HEIGHT - 24,
]  # the same, as a mask


def outlined(annotation_id, image_id, category_id, **more):
    entry = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
    return {**entry, "segmentation": [SQUARE], "bbox": [4.0, 4.0, 20.0, 20.0], "area": 400.0, **more}


def coco(numbers):
    """Of COCO 2017: ids with gaps, URLs, crowds as plain run lengths; no frequency, no negatives."""
    names = {1: "person", 3: "car", 90: "toothbrush"}
    images = [
        {
            "license": 4,
            "file_name": f"{number:012}.jpg",
            "coco_url": f"http://images.cocodataset.org/val2017/{number:012}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": "http://farm7.staticflickr.com/6116/1.jpg",
            "id": number + 100,
        }
        for number in numbers
    ]
    annotations = [outlined(1000 + n, n + 100, (1, 3)[n % 2]) for n in numbers]
    annotations += [outlined(2000 + n, n + 100, 90) for n in list(numbers)[:2]]
    crowd = {"counts": RUNS, "size": [HEIGHT, WIDTH]}
    annotations.append(
        outlined(900100000000, images[0]["id"], 1, iscrowd=1, segmentation=crowd, bbox=[4, 4, 20, 20])
    )
    categories = [{"supercategory": "thing", "id": i, "name": name} for i, name in names.items()]
    content = {"info": {"year": 2017}, "licenses": [], "images": images}
    return {**content, "annotations": annotations, "categories": categories}, [i["file_name"] for i in images]


def lvis(numbers):
    """Of LVIS v1: no file names, federated lists, frequencies and counts of the training images."""
    images = [
        {
            "date_captured": "2013-11-18 09:28:22",
            "neg_category_ids": [2],
            "id": number + 1,
            "license": 1,
            "height": HEIGHT,
            "width": WIDTH,
            "flickr_url": "",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012}.jpg",
            "not_exhaustive_category_ids": [],
        }
        for number in numbers
    ]
    annotations = [outlined(n + 1, n + 1, 1) for n in numbers]
    for annotation in annotations:
        del annotation["iscrowd"]
    described = [("aerosol_can", "c", 12), ("air_conditioner", "r", 0)]
    categories = [
        {
            "name": name,
            "instance_count": count,
            "def": "a thing",
            "synonyms": [name],
            "image_count": count,
            "id": number,
            "frequency": letter,
            "synset": f"{name}.n.01",
        }
        for number, (name, letter, count) in enumerate(described, start=1)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    names = [f"train2017/{number:012}.jpg" for number in numbers]
    return {**content, "categories": categories}, names


def labelme(numbers):
    """Of labelme's labelme2coco: all ids from 0, a class 0 that is none, null wherever nothing is known."""
    names = [f"JPEGImages/img {number}.jpg" for number in numbers]
    images = [
        {
            "license": 0,
            "url": None,
            "file_name": name,
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": None,
            "id": place,
        }
        for place, name in enumerate(names)
    ]
    annotations = [outlined(place, place, 1 + place % 2) for place in range(len(names))]
    categories = [
        {"supercategory": None, "id": place, "name": name}
        for place, name in enumerate(("_background_", "bolt", "ring"))
    ]
    content = {"info": {"description": None}, "licenses": [{"url": None, "id": 0, "name": None}]}
    content |= {"images": images, "type": "instances", "annotations": annotations, "categories": categories}
    return content, names


def cvat(numbers, masks=()):
    """Of CVAT's COCO 1.0: attributes, empty texts, pictures in folders; drawn masks as crowds."""
    names = [f"batch 1/{number}.jpg" for number in numbers]
    images = [
        {
            "id": place,
            "width": WIDTH,
            "height": HEIGHT,
            "file_name": name,
            "license": 0,
            "flickr_url": "",
            "coco_url": "",
            "date_captured": 0,
        }
        for place, name in enumerate(names, start=1)
    ]
    mask = {"segmentation": {"counts": RUNS, "size": [HEIGHT, WIDTH]}, "iscrowd": 1}
    annotations = [
        outlined(
            place, place, 1 + place % 2, attributes={"occluded": False}, **(mask if place in masks else {})
        )
        for place in range(1, len(names) + 1)
    ]
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in ((1, "bolt"), (2, "ring"))]
    content = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {"year": ""}, "categories": categories}
    return {**content, "images": images, "annotations": annotations}, names


def printed(folder, make, *overrides):
    """Write both splits and return what the check prints, and how many kinds of problems it finds."""
    contents = {}
    for split, numbers in SPLITS.items():
        contents[split], names = make(numbers)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    text = io.StringIO()
    summary = check(folder, contents, *overrides)
    return print_summary(summary, Console(file=text, width=100)), text.getvalue()


NO_FREQUENCY = "note categories have no frequency, it is that of their images here: "
EXHAUSTIVE = "note file without neg_category_ids, its images are taken as labelled exhaustively: 12 images"
CROWDS = "marked as crowds (iscrowd=1; CVAT marks each mask so that was drawn: set it to 0 there)"


@pytest.mark.parametrize(
    ("make", "told", "rows"),
    [
        (
            coco,
            [
                "train 12 images, 15 annotations, 3 categories",
                f"note file is used in part: 1 of 15 instances is left out: 1 {CROWDS}",
                f"{NO_FREQUENCY}person, car, toothbrush",
                EXHAUSTIVE,
                "3 classes in train: 3 rare, 0 common, 0 frequent",
            ],
            ["toothbrush 2 2 rare", "person 6 6 rare", "car 6 6 rare"],
        ),
        (
            lvis,
            [
                "note classes have no instance to train on (take them out, or synthesis may draw them): air_",
                "2 classes in train: 1 rare, 1 common, 0 frequent",
            ],
            ["air_conditioner 0 0 rare", "aerosol_can 12 12 common"],
        ),
        (
            labelme,
            [
                "train 12 images, 12 annotations, 3 categories",
                "note categories are placeholders and no classes: _background_",
                f"{NO_FREQUENCY}bolt, ring",
                EXHAUSTIVE,
            ],
            ["bolt 6 6 rare", "ring 6 6 rare"],
        ),
        (cvat, [f"{NO_FREQUENCY}bolt, ring", EXHAUSTIVE], ["bolt 6 6 rare", "ring 6 6 rare"]),
    ],
)
def test_the_files_of_a_tool_are_read_and_told_so_that_a_stranger_understands(tmp_path, make, told, rows):
    num_problems, text = printed(tmp_path, make)
    assert num_problems == 0 and text.endswith("No problem found.\n"), text
    for sentence in told:
        assert sentence in text
    table = [" ".join(line.replace("│", " ").split()) for line in text.splitlines() if line.startswith("│")]
    assert table == rows


def test_masks_that_cvat_marks_as_crowds_are_told_and_refused_where_a_class_has_nothing_else(tmp_path):
    num_problems, text = printed(tmp_path, lambda numbers: cvat(numbers, masks=(1, 3)))
    assert (
        num_problems == 1 and f"note file is used in part: 2 of 12 instances are left out: 2 {CROWDS}" in text
    )
    assert f"problem file loses too much: 2 of 4 instances are left out: 2 {CROWDS}; all of 'ring'" in text
    num_problems, text = printed(tmp_path, lambda numbers: cvat(numbers, masks=range(99)))
    assert (
        num_problems == 2 and f"12 of 12 instances are left out: 12 {CROWDS}; all of 'bolt', 'ring'" in text
    )
