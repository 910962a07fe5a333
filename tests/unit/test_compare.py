import csv

import pytest
from PIL import Image

from mflight.compare import compare, main
from tests.unit.training.test_compared_runs import write_run


def write_sweep(folder):
    """Two ratios; APr 10 and 14 at the first, 20 and nothing to average at the second."""
    values = {
        ("0", 0): (30.0, 10.0),
        ("0", 1): (32.0, 14.0),
        ("0.5", 0): (40.0, 20.0),
        ("0.5", 1): (42.0, -1.0),
    }
    for number, ((ratio, seed), (ap, apr)) in enumerate(values.items()):
        results = {"val/segm/AP": ap, "val/segm/APr": apr, "val/bbox/AP": ap + 1, "steps": 2}
        write_run(folder / str(number), seed=seed, ratio=ratio, results=results)


def test_mean_and_spread_by_hand(tmp_path):
    write_sweep(tmp_path / "sweep")
    groups, left_out = compare([tmp_path / "sweep"], tmp_path / "out")
    assert [group.settings for group in groups] == [{"ratio": "0"}, {"ratio": "0.5"}] and left_out == []
    with (tmp_path / "out" / "compare.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["AP_mean"], first["AP_std"], first["seeds"]) == ("31.0000", "1.4142", "0 1")
    assert (first["APr_mean"], first["APr_std"]) == ("12.0000", "2.8284")
    assert (second["APr_mean"], second["APr_std"], second["num_runs"]) == ("20.0000", "", "2")
    assert Image.open(tmp_path / "out" / "compare.png").height > 300


def test_the_table_has_boxes_and_names_what_is_left_out(tmp_path, capsys):
    write_sweep(tmp_path)
    write_run(tmp_path / "stopped", ratio="0.7", results=False)
    main([str(tmp_path), "--iou-type", "bbox"])
    printed = capsys.readouterr().out
    assert "32.0 ± 1.4" in printed and "42.0 ± 1.4" in printed
    assert f"left out, not finished: {tmp_path / 'stopped'}" in printed
    assert (tmp_path / "compare.png").is_file()


def test_runs_without_figures_are_refused_with_their_place(tmp_path):
    write_run(tmp_path / "0", results={"steps": 2})
    with pytest.raises(SystemExit, match=r"val/segm/AP, found none in \S*"):
        main([str(tmp_path)])
    assert not (tmp_path / "compare.csv").exists()
