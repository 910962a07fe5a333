import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mflight.evaluate import answer, evaluate
from mflight.evaluation.results import score_results

CONF = Path(__file__).resolve().parents[3] / "conf"


@pytest.fixture
def files(tmp_path, world):
    ground_truth = world.make_ground_truth(40, num_images=10)
    results = world.make_results(ground_truth, 41)
    annotations, predictions = tmp_path / "ground truth.json", tmp_path / "results.json"
    annotations.write_text(json.dumps(ground_truth))
    predictions.write_text(json.dumps(results))
    return annotations, predictions


def run_command(folder, *overrides):
    command = [sys.executable, "-m", "mflight.evaluate", *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_command_writes_the_figures_and_nothing_else(tmp_path, files):
    annotations, predictions = files
    work = tmp_path / "work"
    work.mkdir()
    done = run_command(work, f"annotations='{annotations}'", "predictions=../results.json", "output=out.json")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in work.iterdir()] == ["out.json"]
    written = json.loads((work / "out.json").read_text())
    expected = score_results(ground_truth=annotations, results=predictions).compute()
    assert written == expected
    for iou_type in ("bbox", "segm"):
        assert f"{expected[iou_type]['APr']:.2f}" in done.stdout


def test_per_class_table_holds_a_row_for_each_class(tmp_path, files):
    annotations, predictions = files
    table = tmp_path / "classes.csv"
    evaluate(str(annotations), str(predictions), per_class=str(table))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = score_results(ground_truth=annotations, results=predictions).per_class()
    assert [row["name"] for row in rows] == [row["name"] for row in expected]
    for key in ("category_id", "num_images", "num_instances", "segm/AP", "segm/AP50", "bbox/AR"):
        assert [float(row[key]) for row in rows] == [row[key] for row in expected]
    assert {row["frequency"] for row in rows} == {"rare", "common", "frequent"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"one of predictions, checkpoint, pool, checkpoint and pool must be set, got none"),
        (["pool=a", "checkpoint=b", "segmenter=c"], r"must be set, got \['checkpoint', 'pool'\]"),
        (["pool=nowhere", "checkpoint=nowhere"], "checkpoint must name a run folder .*nowhere is not there"),
        (["predictions=a"], "annotations is not set"),
        (["pool=a"], "segmenter is not set"),
        (["pool=nowhere", "segmenter=b"], "found no pool.db in nowhere"),
        (["checkpoint=nowhere"], "checkpoint must name a run folder .*nowhere is not there"),
        (
            ["checkpoint=nowhere", "output=no/out.json"],
            "output must lie in an existing folder, found none at no",
        ),
    ],
)
def test_a_question_that_cannot_be_answered_is_told_in_one_sentence(overrides, message):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", overrides)
    with pytest.raises((ValueError, OSError), match=message):
        answer(cfg)


def test_command_says_what_is_missing_in_one_sentence(tmp_path, files):
    done = run_command(tmp_path, f"annotations='{files[0]}'", "predictions=nowhere.json")
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "error: predictions must be an existing JSON file, found no file at nowhere.json"
    )


def test_paths_are_checked_before_anything_is_read(tmp_path, files):
    annotations, predictions = files
    annotations.write_text("not read")
    with pytest.raises(
        FileNotFoundError, match=r"output must lie in an existing folder, found none at .*absent"
    ):
        evaluate(str(annotations), str(predictions), output=str(tmp_path / "absent" / "out.json"))
    with pytest.raises(
        ValueError, match=r"ground truth\.json: file is no LVIS- or COCO-format annotation file"
    ):
        evaluate(str(annotations), str(predictions))


def test_a_failed_run_leaves_the_old_output(tmp_path, files):
    annotations, predictions = files
    output = tmp_path / "out.json"
    output.write_text("old")
    predictions.write_text(json.dumps([{"image_id": 1}]))
    with pytest.raises(ValueError, match="entry 0"):
        evaluate(str(annotations), str(predictions), output=str(output))
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ground truth.json",
        "out.json",
        "results.json",
    ]


def test_frequencies_of_the_training_set_stand_for_missing_ones(tmp_path, world):
    ground_truth = world.make_ground_truth(3)
    (tmp_path / "results.json").write_text(json.dumps(world.make_results(ground_truth, 4)))
    images = [{**image, "file_name": f"{image['id']}.jpg"} for image in ground_truth["images"]]
    train = {**ground_truth, "images": images}
    (tmp_path / "train.json").write_text(json.dumps(train))
    told = score_results(ground_truth=ground_truth, results=tmp_path / "results.json").compute()
    for category in ground_truth["categories"]:
        del category["frequency"]
    (tmp_path / "val.json").write_text(json.dumps(ground_truth))
    files = {"annotations": f"{tmp_path}/val.json", "predictions": f"{tmp_path}/results.json"}
    assert evaluate(**files)["segm"]["APr"] == -1
    assert evaluate(**files, train_annotations=f"{tmp_path}/train.json") == told


def test_the_lvis_package_is_asked_on_request_and_agrees(tmp_path, world):
    ground_truth = world.make_ground_truth(5)
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    (tmp_path / "results.json").write_text(json.dumps(world.make_results(ground_truth, 6)))
    figures = evaluate(f"{tmp_path}/gt.json", f"{tmp_path}/results.json", with_lvis=True)
    assert list(figures) == ["bbox", "bbox by lvis", "bbox apart", "segm", "segm by lvis", "segm apart"]
    assert figures["segm"].keys() == figures["segm by lvis"].keys() and figures["segm"]["APr"] > 0
    assert max(*figures["bbox apart"].values(), *figures["segm apart"].values()) < 1e-6
    for image in ground_truth["images"]:
        del image["neg_category_ids"]
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    with pytest.raises(ValueError, match=r"the lvis package cannot score .*: KeyError\('neg_category_ids'\)"):
        evaluate(f"{tmp_path}/gt.json", f"{tmp_path}/results.json", with_lvis=True)


def test_an_unknown_evaluator_is_refused():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", ["annotations=a", "predictions=b", "evaluator=coco"])
    with pytest.raises(ValueError, match="evaluator must be mflight or lvis, got 'coco'"):
        answer(cfg)
