import csv
import json

from rich.console import Console

from mflight.training.results import _ap_table, report_results
from tests.unit.training.foreign import ForeignModule, stock_trainer

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def lines_of(figures):
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))
    console.print(_ap_table(figures))
    return console.export_text().splitlines()


def test_the_widest_table_fits_80_columns_with_its_title_on_one_line():
    lines = lines_of({f"val/{kind}/{name}": 100.0 for kind in ("bbox", "segm") for name in NAMES})
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "LVIS validation, percent"
    assert sum("100.0" in line for line in lines) == 2


def test_figures_that_were_not_measured_are_dashes():
    lines = lines_of({"val/segm/AP": 12.34, "val/segm/APr": -100.0})
    (row,) = [line for line in lines if "masks" in line]
    assert row.split("│")[2].strip() == "12.3" and row.split("│")[8].strip() == "-"
    assert not any("boxes" in line for line in lines)


def test_the_files_are_written_for_somebody_elses_module_and_data(tmp_path, capsys):
    trainer = stock_trainer(tmp_path)
    trainer.strategy.connect(ForeignModule())
    report_results(trainer, run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {
        "steps": 0,
        "num_ranks": 1,
        "messages": [],
    }
    assert json.loads((tmp_path / "run" / "per_class.json").read_text()) == []
    assert str(tmp_path / "run") in capsys.readouterr().out.replace("\n", "")


def test_the_table_of_classes_tells_how_much_there_was_to_learn_from(tmp_path, build_datamodule):
    data = build_datamodule()
    rows = [
        {
            "category_id": c.category_id,
            "name": c.name,
            "frequency": c.frequency,
            "num_instances": 1,
            "segm/AP": 2.5,
        }
        for c in data.categories
    ]
    trainer = stock_trainer(tmp_path)
    trainer.strategy.connect(ForeignModule())
    trainer.lightning_module.per_class = rows
    trainer.datamodule = data
    report_results(trainer, run_dir=tmp_path / "run")
    with (tmp_path / "run" / "per_class.csv").open() as file:
        written = list(csv.DictReader(file))
    annotations = json.loads(data.real.train_annotations.read_text())["annotations"]
    assert len(written) == 24 and written[0]["segm/AP"] == "2.5"
    for row in written:
        own = [a["image_id"] for a in annotations if a["category_id"] == int(row["category_id"])]
        assert (int(row["num_train_images"]), int(row["num_train_instances"])) == (len(set(own)), len(own))
        assert row["frequency"] in ("rare", "common", "frequent")
