import json

import pytest

from mflight.evaluation.ground_truth import GroundTruth
from mflight.evaluation.results import read_results

GROUND_TRUTH = {
    "images": [{"id": 3, "height": 20, "width": 30, "neg_category_ids": []}],
    "categories": [{"id": 5, "name": "cup", "image_count": 11}, {"id": 8, "name": "cap"}],
    "annotations": [{"id": 1, "image_id": 3, "category_id": 5, "bbox": [0, 0, 9, 9], "area": 81}],
}
BOX = {"image_id": 3, "category_id": 5, "score": 0.5, "bbox": [1, 2, 3, 4]}


@pytest.fixture(params=["file", "list"])
def read(request, tmp_path):
    def read_either_way(entries):
        if request.param == "list":
            return read_results(entries, GroundTruth.load(GROUND_TRUTH))
        path = tmp_path / "results.json"
        path.write_text(json.dumps(entries))
        return read_results(path, GroundTruth.load(GROUND_TRUTH))

    return read_either_way


def without(key):
    return {name: value for name, value in BOX.items() if name != key}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (without("score"), "entry 2 .*required field `score`.*'bbox', 'category_id', 'image_id'"),
        (without("image_id"), "entry 2 .*required field `image_id`"),
        (without("bbox"), "entry 2 must hold .* it holds neither"),
        ({**BOX, "bbox": [1, 2, 3]}, r"entry 2 .*length 4.* at `\$\.bbox`"),
        ({**BOX, "score": "high"}, "entry 2 .*float.*str"),
        ({**BOX, "image_id": 4}, "entry 2 has image_id 4, which the ground truth"),
        ({**BOX, "category_id": 6}, "entry 2 has category_id 6, which"),
        (7, "entry 2 .*it holds 7"),
        ({**BOX, "segmentation": {"size": [20, 30], "counts": "x"}}, "entry 2 holds .*'segm'.* first entry"),
    ],
)
def test_bad_entries_are_named(read, entry, message):
    with pytest.raises(ValueError, match=message):
        read([BOX, BOX, entry])


def test_rle_must_have_the_size_of_its_image(read):
    with pytest.raises(ValueError, match=r"entry 0 .*size \[30, 20\], but its image has \[20, 30\]"):
        read([{**BOX, "segmentation": {"size": [30, 20], "counts": "x"}}])


@pytest.mark.parametrize("content", ['{"annotations": []}', '"text"'])
def test_a_file_that_is_no_list_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"results\.json must hold a list of results, it starts with '.*t"):
        read_results(path, GroundTruth.load(GROUND_TRUTH))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[{"image_id": 3', "is not valid JSON.*truncated"),
        (b'[{"score": NaN}]', r"is not valid JSON.*\(byte 11\) at '.*NaN"),
        (b"\xff\xd8\xff", "must hold a list of results"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, content, told):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"results\.json {told}"):
        read_results(path, GroundTruth.load(GROUND_TRUTH))


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([BOX]), encoding="utf-8-sig")
    assert len(read_results(path, GroundTruth.load(GROUND_TRUTH))) == 1


def test_boxes_keep_the_order_of_the_file(read):
    detections = read([{**BOX, "score": score} for score in (0.2, 0.9, 0.4)])
    assert detections.scores.tolist() == [0.2, 0.9, 0.4]
    assert detections.areas_px.tolist() == [12.0, 12.0, 12.0]
    assert detections.segmentations is None


def test_frequency_comes_from_the_image_count_or_stays_open():
    assert GroundTruth.load(GROUND_TRUTH).frequencies == ("common", "")


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        (
            "images",
            {"id": 3, "height": 2, "width": 2, "neg_category_ids": []},
            "image ids are listed twice: 3",
        ),
        ("categories", {"id": 9, "name": "hat", "frequency": "x"}, "'x' of category 'hat'"),
        (
            "annotations",
            {"id": 1, "image_id": 3, "category_id": 5, "bbox": [0, 0, 9, 9], "area": 1},
            "annotation ids are listed twice: 1",
        ),
        (
            "annotations",
            {"id": 2, "image_id": 4, "category_id": 5, "bbox": [0, 0, 9, 9], "area": 1},
            "unknown image_id: 4",
        ),
        (
            "annotations",
            {"id": 2, "image_id": 3, "category_id": 6, "bbox": [0, 0, 9, 9], "area": 1},
            "unknown category_id: 6",
        ),
        (
            "annotations",
            {"id": 2, "image_id": 3, "category_id": 5, "area": 1},
            "neither a box nor an outline: annotation 2, None",
        ),
    ],
)
def test_bad_ground_truth_is_named(part, entry, message):
    with pytest.raises(ValueError, match=message):
        GroundTruth.load({**GROUND_TRUTH, part: [*GROUND_TRUTH[part], entry]})


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (
            {"size": [20, 30], "counts": [0, 9]},
            "entry 1 holds no mask of its image: its runs cover 9 px and not 20 x",
        ),
        ({"size": [20, 30], "counts": [601]}, "entry 1 .* cover 601 px"),
        ({"size": [20, 30], "counts": "b'05'"}, "entry 1 .* repr of bytes"),
        ({"size": [20, 30], "counts": ""}, "entry 1 .* are empty"),
        ({"size": [20, 30], "counts": 7}, "entry 1 .* text or a list of runs, got 7"),
        ([[1, 1, 4e8, 1, 5, 5]], r"entry 1 holds no outline of its image: 4e\+08 px in 30 x 20 px"),
        ([[1, 1, "x", 1, 5, 5]], "entry 1 holds no outline .* must hold numbers"),
    ],
)
def test_outlines_that_are_no_masks_are_named(read, outline, message):
    good = {**without("bbox"), "segmentation": {"size": [20, 30], "counts": [590, 10]}}
    with pytest.raises(ValueError, match=message):
        read([good, {**good, "segmentation": outline}])


def test_points_are_read_as_polygons_and_ids_without_a_fraction_as_ids(read):
    flat, pairs = [[2, 2, 8, 2, 8, 8, 2, 8]], [[2, 2], [8, 2], [8, 8], [2, 8]]
    entries = [{**without("bbox"), "segmentation": each, "image_id": 3.0} for each in (flat, pairs)]
    assert read(entries).areas_px.tolist() == [36.0, 36.0]
    with pytest.raises(ValueError, match=f"entry 0 has image_id {1 << 64}"):
        read([{**BOX, "image_id": 1 << 64}])


def test_another_name_of_a_class_is_refused(read):
    assert len(read([{**BOX, "category_name": "Cup"}])) == 1
    with pytest.raises(ValueError, match="entry 0 names another class: category 5 is 'cup' and 'cap'"):
        read([{**BOX, "category_name": "cap"}])


def test_what_is_scored_can_be_asked_for():
    truth = GroundTruth.load(GROUND_TRUTH)
    mask = {**without("bbox"), "segmentation": {"size": [20, 30], "counts": [20 * 2 + 3, 4, 16, 4, 533]}}
    detections = read_results([mask], truth, ["bbox"])
    assert detections.boxes_xywh.tolist() == [[2, 3, 2, 4]] and detections.segmentations is None
    assert read_results([{**BOX, **mask}], truth, ["segm"]).boxes_xywh is None
    assert read_results([mask], truth).boxes_xywh is None
    with pytest.raises(
        ValueError, match=r"iou_types=\['segm'\] asks for masks, the entries of results hold boxes"
    ):
        read_results([BOX], truth, ["segm"])
    with pytest.raises(ValueError, match=r"some of \['bbox', 'segm'\], got \['box'\]"):
        read_results([BOX], truth, ["box"])
