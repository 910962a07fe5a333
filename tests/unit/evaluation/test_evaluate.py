import json
import subprocess
import sys

import pytest

from mflight.evaluate import evaluate
from mflight.evaluation.scoring import score_results


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


def test_command_says_what_is_missing_in_one_sentence(tmp_path, files):
    done = run_command(tmp_path, f"annotations='{files[0]}'", "predictions=nowhere.json")
    assert done.returncode == 1
    assert done.stderr.strip() == "predictions must be an existing JSON file, found no file at nowhere.json"


def test_paths_are_checked_before_anything_is_read(tmp_path, files):
    annotations, predictions = files
    annotations.write_text("not read")
    with pytest.raises(
        FileNotFoundError, match=r"output must lie in an existing folder, found none at .*absent"
    ):
        evaluate(str(annotations), str(predictions), output=str(tmp_path / "absent" / "out.json"))
    with pytest.raises(ValueError, match=r"ground truth\.json is not an annotation file"):
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
