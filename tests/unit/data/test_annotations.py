import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mflight.data import annotation_chunk, instance_arrays
from mflight.data.annotations import read_annotation_file, read_classes

SQUARE = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]]
TRIANGLE = [0.5, 0.5, 4.5, 0.5, 0.5, 2.5]
IMAGE = {"id": 4, "height": 4, "width": 6, "file_name": "a.png"}
CODES = [
    ([0, 5], r"annotation 5 of image 20, its runs cover 5 px and not 4 x 6"),
    ([0, 25], "cover 25 px and not 4 x 6"),
    ([30, -6], "whole numbers >= 0, got -6"),
    ([], "its counts are empty"),
    ("", "its counts are empty"),
    ("b'0120'", "the repr of bytes, b'0120'"),
    ("01\n20", r"hold '\\n'"),
    ("PP", "end within a number"),
    ("05", "cover 5 px and not 4 x 6"),
    (None, "text or a list of runs, got None"),
]


def annotation(annotation_id, **changes):
    entry = {
        "id": annotation_id,
        "image_id": 20,
        "category_id": 7,
        "bbox": [1.0, 1.0, 2.0, 2.0],
        "area": 4.0,
        "segmentation": SQUARE,
    }
    return {**entry, **changes}


def write(folder, annotations, **changes):
    content = {
        "images": [
            {
                "id": 20,
                "height": 4,
                "width": 6,
                "coco_url": "http://images.cocodataset.org/val2017/000000000020.jpg",
                "neg_category_ids": [3, 99],
                "not_exhaustive_category_ids": [7],
            },
            {"id": 11, "height": 4, "width": 6, "file_name": "eleven.png"},
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cup"}, {"id": 3, "name": "tray"}],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_instances_are_sorted_by_image_and_keep_their_own_polygons(tmp_path):
    annotations = [
        annotation(1, image_id=11, segmentation=[TRIANGLE], category_id=3),
        annotation(2, segmentation=[SQUARE[0], TRIANGLE]),
        annotation(3, image_id=11, bbox=[0.5, 0.0, 3.0, 2.5], area=1.5),
    ]
    arrays = read_annotation_file(write(tmp_path, annotations))
    assert arrays["image_ids"].tolist() == [20, 11]
    assert arrays["instance_offsets"].tolist() == [0, 1, 3]
    assert arrays["annotation_ids"].tolist() == [2, 1, 3]
    assert arrays["labels"].tolist() == [2, 1, 2]
    assert arrays["boxes"][2].tolist() == [0.5, 0.0, 3.5, 2.5]
    assert arrays["areas"].tolist() == [4.0, 4.0, 1.5]
    assert arrays["polygon_offsets"].tolist() == [0, 2, 3, 4]
    assert arrays["vertex_offsets"].tolist() == [0, 4, 7, 10, 14]
    expected = np.array(SQUARE[0] + TRIANGLE + TRIANGLE + SQUARE[0], dtype=np.float32)
    np.testing.assert_array_equal(arrays["vertices"].ravel(), expected)


def test_run_length_codes_of_both_kinds_are_kept(tmp_path):
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[1:3, 2:5] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    compressed = {"size": [4, 6], "counts": packed["counts"].decode()}
    plain = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}  # columns 2, 3, 4 have rows 1 and 2
    annotations = [annotation(1, segmentation=plain), annotation(2), annotation(3, segmentation=compressed)]
    arrays = read_annotation_file(write(tmp_path, annotations))
    first, second, third, end = arrays["rle_offsets"].tolist()
    assert second == third and arrays["polygon_offsets"].tolist() == [0, 0, 1, 1]
    for start, stop in ((first, second), (third, end)):
        counts = arrays["rle"][start:stop].tobytes()
        np.testing.assert_array_equal(coco_mask.decode({"size": [4, 6], "counts": counts}), mask)


def test_federated_labels_and_paths_are_read(tmp_path):
    arrays = read_annotation_file(write(tmp_path, []))
    assert arrays["negatives"].tolist() == [1]  # category 99 is not in the file
    assert arrays["negative_offsets"].tolist() == [0, 1, 1]
    assert arrays["not_exhaustive"].tolist() == [2]
    assert arrays["image_sizes_hw"].tolist() == [[4, 6], [4, 6]]
    assert arrays["paths"].tobytes().decode() == "val2017/000000000020.jpgeleven.png"
    assert arrays["path_offsets"].tolist() == [0, 24, 34]


def test_what_cannot_be_trained_on_is_dropped_and_counted(tmp_path):
    crowd = {"size": [4, 6], "counts": [0, 24]}
    annotations = [
        annotation(1, iscrowd=1, segmentation=crowd),
        annotation(2, segmentation=[[6.5, 1.0, 8.0, 1.0, 8.0, 3.0]]),
        annotation(3, bbox=[1.0, 1.0, 2.0, -1.0], segmentation=None),
        annotation(4, segmentation=[[1.0, 1.0, 2.0, 2.0]]),
        annotation(5, segmentation=[]),
        annotation(6, segmentation=[[1.0, 1.0, 2.0, 2.0], TRIANGLE]),
        annotation(7, segmentation=[[1.0, 1.0, 3.0, 1.0, 2.0, 1.0]]),  # a line
        annotation(8, segmentation=[[0.2, 0.2, 0.5, 0.2, 0.5, 0.8]], bbox=[0.2, 0.2, 0.3, 0.6]),  # shares
    ]
    arrays = read_annotation_file(write(tmp_path, annotations))
    assert arrays["num_dropped"].tolist() == [[0, 1], [0, 4], [0, 1], [0, 1], [0, 0]]
    assert arrays["annotation_ids"].tolist() == [6]
    assert arrays["vertex_offsets"].tolist() == [0, 3]


def test_an_instance_whose_box_contradicts_its_outline_is_left_out(tmp_path):
    size = {"images": [{**IMAGE, "id": 20, "height": 96, "width": 128}]}
    square = [[60.0, 50.0, 70.0, 50.0, 70.0, 60.0, 60.0, 60.0]]
    boxes = [
        [60, 50, 10, 10],
        [59, 49, 12, 12],
        [60, 50, 70, 60],
        [20, 50, 10, 10],
    ]  # exact, rounded, xyxy, apart
    entries = [annotation(i, bbox=box, segmentation=square) for i, box in enumerate(boxes, start=1)]
    arrays = read_annotation_file(write(tmp_path, entries, **size))
    assert arrays["annotation_ids"].tolist() == [1, 2]
    assert arrays["num_dropped"].sum(axis=1).tolist() == [0, 0, 0, 0, 2]


def test_ids_are_kept_to_the_last_digit_and_texts_are_read(tmp_path):
    large = (1 << 62) + 1
    entries = [annotation(large), annotation(str(large + 1), image_id="20", category_id="7")]
    arrays = read_annotation_file(
        write(tmp_path, entries, categories=[{"id": "7", "name": "cup"}, {"id": 0, "name": "_background_"}])
    )
    assert arrays["annotation_ids"].tolist() == [large, large + 1] and arrays["labels"].tolist() == [1, 1]


@pytest.mark.parametrize("area", [None, 0, -1.0])
def test_a_missing_area_is_that_of_the_outline(tmp_path, area):
    runs = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
    entries = [
        annotation(1, area=area),
        annotation(2, area=area, segmentation=[TRIANGLE]),
        annotation(3, area=7),
    ]
    entries += [annotation(4, area=area, segmentation=runs)]
    if area is None:
        del entries[0]["area"]
    assert read_annotation_file(write(tmp_path, entries))["areas"].tolist() == [4.0, 4.0, 7.0, 6.0]


def test_a_missing_or_empty_box_is_that_of_the_outline(tmp_path):
    runs = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
    entries = [
        annotation(i, bbox=box) for i, box in enumerate([None, [], [0, 0, 0, 0], [1, 1, -2, 2]], start=1)
    ]
    entries += [annotation(5, bbox=None, segmentation=runs)]
    del entries[0]["bbox"]
    arrays = read_annotation_file(write(tmp_path, entries))
    assert arrays["boxes"].tolist() == [[1, 1, 3, 3]] * 4 + [[2, 1, 5, 3]]
    assert arrays["num_mended"].tolist() == [5]


@pytest.mark.parametrize(
    "outline",
    [
        [[1, 1], [3, 1], [3, 3], [1, 3]],
        [[[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]]],
        [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0],
        [[1, 1, 3, 1, 3, 3, 1, 3], [], [1, 1]],
    ],
)
def test_polygons_are_read_whichever_way_they_are_written(tmp_path, outline):
    arrays = read_annotation_file(write(tmp_path, [annotation(1), annotation(2, segmentation=outline)]))
    assert arrays["vertices"].tolist() == [[1, 1], [3, 1], [3, 3], [1, 3]] * 2
    assert arrays["polygon_offsets"].tolist() == [0, 1, 2]


def test_what_other_tools_write_for_numbers_and_nothing_is_read(tmp_path):
    entries = [annotation(1, iscrowd=False), annotation(2, iscrowd=None), annotation(3.0, iscrowd=True)]
    categories = [
        {
            "id": 7.0,
            "name": " cup ",
            "def": None,
            "synonyms": "mug",
            "image_count": None,
            "frequency": "rare",
        },
        {"id": 3, "name": "tray", "synonyms": None, "synset": None, "instance_count": None},
    ]
    arrays = read_annotation_file(write(tmp_path, entries, categories=categories))
    assert arrays["annotation_ids"].tolist() == [1, 2] and arrays["num_dropped"].sum() == 1
    tray, cup = read_classes(arrays)
    assert (cup.name, cup.definition, cup.synonyms, cup.image_count) == ("cup", "", ("mug",), 1)
    assert (tray.synonyms, tray.synset, tray.instance_count, tray.frequency) == ((), "", 0, "rare")


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        ([annotation(5), annotation(5)], {}, "annotation ids are listed twice: 5"),
        ([annotation(1 << 63)], {}, rf"64 bits: {1 << 63} of annotations\[0\]"),
        (
            [annotation(5, image_id=20.5)],
            {},
            r"annotations\[0\]: Expected `int`, got `float` - at `\$.image_id`",
        ),
        ([], {"images": [{"id": 1 << 70, "height": 4, "width": 6}]}, rf"{1 << 70} of images\[0\]"),
        ([], {"images": [IMAGE, {**IMAGE, "file_name": "b.png"}]}, "image ids are listed twice: 4"),
        ([], {"images": [IMAGE, {**IMAGE, "id": 5}]}, "two ids: a.png as 4 and 5"),
        ([], {"images": [{**IMAGE, "width": 0}]}, "1 to 1,073,741,824 px: image 4, height 4, width 0"),
        ([], {"images": [{**IMAGE, "width": 10**12}]}, "image 4, height 4, width 1000000000000"),
        ([annotation(5, area=float("nan"))], {}, r"malformed: invalid character \(byte .*\"area\": NaN"),
        (
            [],
            {"categories": [{"id": 1, "name": "Traffic_light"}, {"id": 2, "name": "traffic light "}]},
            "alike",
        ),
        ([], {"categories": [{"id": 1, "name": " \u200b"}]}, "lack a name: category 1, name ' .u200b'"),
        ([], {"categories": [{"id": 1, "name": "cup", "synonyms": 5}]}, "no text: 5 of category 'cup'"),
        (
            [],
            {"categories": [{"id": 1, "name": "cup", "image_count": "3"}]},
            "image_count '3' of category 'cup'",
        ),
        ([], {"categories": []}, "lists no categories"),
        (
            [annotation(5, segmentation=[[1, 1, 3.5e8, 1, 3, 3]])],
            {},
            r"annotation 5 .* 3.5e\+08 px in 6 x 4 px",
        ),
        ([annotation(5, segmentation=[[1, 1, 1e300, 1, 3, 3]])], {}, "annotation 5 of image 20, inf px"),
        ([annotation(5, segmentation=[[1, 1, "3", 1, 3, 3]])], {}, r"annotation 5 of .*'3'"),
        ([annotation(5, bbox=[1, 1, -9e9, 2])], {}, r"annotation 5 .* px in 6 x 4 px"),
        ([annotation(5, bbox=[100, 1, 2, 2])], {}, r"annotation 5 .* 102 px in 6 x 4 px"),
        *(
            ([annotation(5, segmentation={"size": [4, 6], "counts": counts})], {}, message)
            for counts, message in CODES
        ),
        (
            [annotation(5, image_id=8)],
            {},
            r"annotations.json: annotations name an unknown image_id: 8 in annotation 5",
        ),
        ([annotation(5, category_id=1)], {}, "unknown category_id: 1"),
        (
            [annotation(5, segmentation={"size": [6, 4], "counts": [24]})],
            {},
            r"another size .* annotation 5 of image 20, \[6, 4\], the image \[4, 6\]",
        ),
        (
            [annotation(5, bbox=[1, 2, 3])],
            {},
            r"boxes are no four numbers .* annotation 5 of image 20, \[1.0, 2.0, 3.0\]",
        ),
        ([], {"images": "none"}, "annotations.json: file is no LVIS- or COCO-format annotation file"),
        (
            [],
            {"images": [{"id": 4, "height": 2, "width": 2}]},
            "neither a file_name nor a coco_url: image 4",
        ),
        ([], {"categories": [{"name": "cup"}]}, r"as id: \{'name': 'cup'\}"),
    ],
)
def test_faulty_files_are_refused_with_the_entry(tmp_path, annotations, changes, message):
    with pytest.raises(ValueError, match=message):
        read_annotation_file(write(tmp_path, annotations, **changes))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"\x1f\x8b\x08", "it is compressed"),
        (b"<!DOCTYPE html>", r".*\(byte 0\) at '<!DOCTYPE html>'"),
        (b"[]", "Expected `object`, got `array`"),
    ],
)
def test_what_is_no_annotation_file_is_refused(tmp_path, content, told):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a.json: file is no LVIS.*: {told}"):
        read_annotation_file(tmp_path / "a.json")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = write(tmp_path, [annotation(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_annotation_file(path)["annotation_ids"].tolist() == [1]


def test_an_image_without_negative_classes_is_taken_as_labelled_exhaustively(tmp_path):
    arrays = read_annotation_file(write(tmp_path, []))
    assert arrays["is_exhaustive"].tolist() == [False, True]


def test_classes_and_crowds_are_counted(tmp_path):
    crowd = annotation(4, iscrowd=1, category_id=3, segmentation={"size": [4, 6], "counts": [0, 24]})
    annotations = [annotation(1), annotation(2), annotation(3, image_id=11, category_id=3), crowd]
    arrays = read_annotation_file(write(tmp_path, annotations))
    assert arrays["image_counts"].tolist() == [1, 1]  # ids 3, 7
    assert arrays["instance_counts"].tolist() == [1, 2]
    assert arrays["crowd_offsets"].tolist() == [0, 1, 1] and arrays["crowd_labels"].tolist() == [1]
    assert arrays["crowd_boxes"].tolist() == [[1, 1, 3, 3]]


def test_many_annotations_come_through_in_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_chunk, "_CHUNK", 2)
    monkeypatch.setattr(instance_arrays, "_BLOCK", 2)
    entries = [annotation(i, image_id=(20, 11)[i % 2], bbox=[1.0, 1.0, i, 2.0]) for i in range(1, 6)]
    arrays = read_annotation_file(write(tmp_path, entries))
    assert arrays["annotation_ids"].tolist() == [2, 4, 1, 3, 5]
    assert arrays["boxes"][:, 2].tolist() == [3, 5, 2, 4, 6]
    assert arrays["vertex_offsets"].tolist() == [0, 4, 8, 12, 16, 20]
