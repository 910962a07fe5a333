"""A record and its page from run folders written by hand."""

import json

import pytest

from mflight.proof.page import proof_to_html
from mflight.proof.record import build_record
from mflight.proof.runs import Run
from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.squares import make_sample

EVIL = "<script>alert(1)</script>"
TIMES = {"synthesis": 150.0, "real_only": 100.0, "control": 120.0}


def write_run(folder, arm, seed, segm_ap, class_ap):
    run = Run(arm, seed, folder / arm / f"seed_{seed}", (f"seed={seed}",), {}, arm == "synthesis")
    (run.folder / "csv").mkdir(parents=True)
    figures = {
        "val/segm/AP": segm_ap,
        "val/segm/APr": -1.0,
        "val/segm/APf": segm_ap,
        "val/bbox/AP": segm_ap + 1,
    }
    results = {"steps": 20, "train_s": TIMES[arm], "num_ranks": 1, **figures}
    if arm == "synthesis":
        results |= {
            "synthesis/busy_s": 60.0,
            "synthesis/images": 4.0,
            "synthesis/dropped": 1,
            "synthesis/regions": 20,
        }
        results |= {
            "synthesis/rejected_ratio": 0.1,
            "synthesis/rejected/area": 2,
            "synthesis/synthetic_share": 0.2,
        }
    (run.folder / "results.json").write_text(json.dumps(results))
    rows = [
        {
            "category_id": 2,
            "name": EVIL,
            "frequency": "frequent",
            "num_train_images": 30,
            "segm/AP": class_ap,
        },
        {"category_id": 3, "name": "never_seen", "frequency": "rare", "num_train_images": 1, "segm/AP": -1.0},
        {"category_id": 5, "name": "cup", "frequency": "frequent", "num_train_images": 40, "segm/AP": 50.0},
    ]
    (run.folder / "per_class.json").write_text(json.dumps(rows))
    (run.folder / "csv" / "metrics.csv").write_text(f"step,val/segm/AP\n9,\n14,7.5\n20,{segm_ap}\n")
    (run.folder / "csv_before_0.csv").write_text("step,val/segm/AP\n9,5.0\n14,7.0\n")
    return run


@pytest.fixture
def runs(tmp_path):
    told = {"synthesis": [(40.0, 30.0), (44.0, 34.0)], "real_only": [(39.0, 20.0), (41.0, 22.0)]}
    told["control"] = [(42.0, 40.0), (42.0, 40.0)]
    runs = {
        arm: [write_run(tmp_path, arm, seed, *figures) for seed, figures in enumerate(own)]
        for arm, own in told.items()
    }
    for run in runs["synthesis"]:
        with PoolWriter(run.folder / "pool", "w0") as writer:
            for index in range(3):
                writer.append(make_sample(index), index=index)
    return runs


@pytest.fixture
def record(runs):
    return build_record(runs, ["equal_real", "equal_images"], pools_of(runs))


def pools_of(runs):
    return [run.folder / "pool" for run in runs["synthesis"]]


def test_figures_are_paired_by_seed_and_what_has_none_is_left_out(record):
    account = record["accounts"]["equal_real"]
    assert account["real_only"]["segm/AP"] == [39.0, 41.0] and account["synthesis"]["segm/AP"] == [40.0, 44.0]
    assert account["difference"]["segm/AP"]["mean"] == 2.0
    assert account["difference"]["segm/AP"]["sd"] == pytest.approx(2**0.5)
    assert set(account["difference"]) == {"segm/AP", "segm/APf", "bbox/AP"}, "no rare class was scored"
    assert record["accounts"]["equal_images"]["difference"]["segm/AP"]["mean"] == 0.0
    json.dumps(record)


def test_machine_time_is_that_of_training_and_drawing(record):
    assert record["machine_s"]["synthesis"] == [210.0, 210.0]
    assert record["machine_time"] == {"equal_real": 2.1, "equal_images": 1.75}


def test_curves_hold_what_a_resumed_run_had_logged_before(record):
    # the validations of a fit are logged with its last batch, the last one with the number of steps
    assert record["curves"]["control"][0]["segm/AP"] == [(10, 5.0), (15, 7.5), (20, 42.0)]


def test_classes_are_sorted_by_their_change_and_tell_what_was_drawn(record):
    assert [row["category_id"] for row in record["classes"]] == [2, 5]
    first, second = record["classes"]
    assert first["difference"]["mean"] == 11.0 and second["difference"]["mean"] == 0.0
    assert (first["num_drawn"], first["num_accepted"], first["num_train_images"]) == (6, 6, 30)
    assert (second["num_drawn"], second["num_accepted"]) == (0, 0)


def test_the_page_holds_all_it_shows_and_reads_no_text_as_html(record, runs):
    record |= {
        "name": "mine & yours",
        "answer": "Synthesis helped: -1",
        "seeds": [0, 1],
        "commit": "abc",
        "hardware": "x",
    }
    page = proof_to_html(
        {**record, "commands": ["python -m mflight.prove", "python train.py"]}, pools_of(runs)
    )
    assert EVIL not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "mine &amp; yours" in page and "helped: \N{MINUS SIGN}1" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert page.count("data:image/webp;base64,") == 4 and page.count('class="own"') == 4
    assert "+2.0 ± 12.7" in page and "2.10 x" in page and "10.0 %" in page
    assert "boxes" not in page and "box AP" in page


def test_a_thousand_classes_fit_on_the_page(record, runs):
    rows = [
        {**record["classes"][0], "category_id": number, "name": f"class_{number}"} for number in range(1203)
    ]
    record |= {"classes": rows, "name": "x", "answer": "y", "seeds": [0, 1], "commit": "abc", "hardware": "x"}
    page = proof_to_html({**record, "commands": ["python -m mflight.prove"]}, [])
    assert page.count("data-class=") == 1203 and "1163 classes between them" in page
