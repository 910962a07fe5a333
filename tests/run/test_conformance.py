"""The published program's outputs, where present: ``$MFLIGHT_REFERENCE``, else ../shared/reference."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import conformance
from tests.reference import REFERENCE

ROOT = Path(__file__).parents[2]
CASES = sorted(path.stem for path in REFERENCE.glob("case*.json"))
SOLVER_CASES = sorted(path.stem for path in REFERENCE.glob("bilateral*.npz"))
FIGURES = {
    "boxes_equal": True,
    "tokens_equal": True,
    "latents_error": 1e-6,
    "image_close": 1.0,
    "heat_close": 1.0,
    "mask_iou": 1.0,
}


@pytest.mark.slow
@pytest.mark.skipif(not CASES, reason="MFLIGHT_REFERENCE is absent")
@pytest.mark.parametrize("case", CASES)
def test_mosaic_is_the_published_one(case):
    assert conformance.run_mosaic(REFERENCE / f"{case}.json").broken == ()


@pytest.mark.parametrize(
    ("figure", "value", "rule"),
    [
        ("boxes_equal", False, "boxes"),
        ("latents_error", 0.0011, "latents within 1e-3"),
        ("latents_error", float("nan"), "latents within 1e-3"),
        ("heat_close", 0.989, "heat maps"),
    ],
)
def test_figure_outside_its_tolerance_fails(figure, value, rule):
    verdict = conformance.judge_mosaic("case9", {"float32": FIGURES | {figure: value}})
    assert len(verdict.broken) == 1 and verdict.broken[0].startswith(rule)
    assert str(verdict).startswith("FAIL case9")


def test_each_rule_must_hold_in_one_precision_and_the_line_tells_which():
    float32 = FIGURES | {"latents_error": 0.0012, "mask_iou": 0.993}
    float64 = FIGURES | {"latents_error": 0.0006, "mask_iou": 0.988}
    verdict = conformance.judge_mosaic("case9", {"float32": float32, "float64": float64})
    assert verdict.passed and str(verdict).startswith("PASS case9")
    assert "latents_error=1.20e-03" in str(verdict) and "latents_error=6.00e-04" in str(verdict)
    assert "mask_iou=0.99300" in str(verdict) and "mask_iou=0.98800" in str(verdict)
    assert str(verdict).endswith("only in float64: latents within 1e-3")
    measured = {"float32": float32 | {"mask_iou": 0.989}, "float64": float64}
    assert conformance.judge_mosaic("case9", measured).broken == ("masks IoU >= 0.99",)
    own = FIGURES | {"latents_error": 0.0011, "mask_iou": 0.991}
    verdict = conformance.judge_mosaic(
        "case9", {"float32": measured["float32"], "without": own, "float64": float64}
    )
    assert verdict.kept_in == {"latents within 1e-3": "float64", "masks IoU >= 0.99": "without"}


def test_settled_masks_count_only_where_they_are_given():
    float32, float64 = (FIGURES | {"mask_iou": iou} for iou in (0.983, 0.988))
    both = {"float32": float32, "float64": float64}
    assert conformance.judge_mosaic("case9", both).broken == ("masks IoU >= 0.99",)
    settled = float64 | {"mask_iou_settled": 0.999, "cells_moved": 4}
    line = str(conformance.judge_mosaic("case9", {"float32": float32, "float64": settled}))
    assert line.startswith("PASS case9")
    assert "mask_iou=0.98800 mask_iou_settled=0.99900 cells_moved=4; only in float64: masks IoU" in line


def test_only_a_cell_at_a_step_may_move_and_only_towards_the_reference():
    maps = [torch.tensor([[1.0, 99.99 / 255], [149.5 / 255, 149.5 / 255]])]
    (settled,), num_moved = conformance.settle_steps(maps, np.array([[255, 100], [120, 149]], np.uint8))
    assert settled.int().tolist() == [[255, 100], [149, 149]] and num_moved == 1
    (kept,), num_moved = conformance.settle_steps(maps, np.array([[255, 99], [120, 149]], np.uint8))
    assert kept.int().tolist() == [[255, 99], [149, 149]] and num_moved == 0


def test_good_figures_pass_and_are_printed():
    assert str(conformance.judge_mosaic("case9", {"float32": FIGURES})).startswith(
        "PASS case9 boxes_equal=True"
    )


def test_folder_without_cases_and_a_wrong_case_exit_with_1(tmp_path, capsys):
    assert conformance.main([str(tmp_path)]) == 1
    assert "FAIL no caseN.json" in capsys.readouterr().out
    if SOLVER_CASES:
        with np.load(REFERENCE / f"{SOLVER_CASES[0]}.npz") as case:
            arrays = dict(case)
        arrays["mask"] = 255 - arrays["mask"]
        np.savez(tmp_path / "bilateral0.npz", **arrays)
        assert conformance.main([str(tmp_path)]) == 1
        assert "FAIL bilateral0" in capsys.readouterr().out


@pytest.mark.skipif(not SOLVER_CASES, reason="MFLIGHT_REFERENCE is absent")
def test_the_command_prints_a_line_a_case_and_exits_with_0(tmp_path):
    shutil.copy(REFERENCE / f"{SOLVER_CASES[0]}.npz", tmp_path)
    command = [sys.executable, "tests/conformance.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"PASS {SOLVER_CASES[0]} soft1_close=") and "mask_iou=" in line


@pytest.mark.skipif("case3" not in CASES, reason="MFLIGHT_REFERENCE is absent")
def test_boxes_and_tokens_are_compared_and_never_read(tmp_path, capsys):
    """Falsified in the file, they break their two rules and change nothing that is drawn."""
    case = json.loads((REFERENCE / "case3.json").read_text())
    case["region_boxes_y1y2x1x2"][0][3] -= 8
    case["token_index"][0] += 1
    (tmp_path / "case3.json").write_text(json.dumps(case))
    (tmp_path / "case3.npz").symlink_to(REFERENCE / "case3.npz")
    (tmp_path / "tiny-sd").symlink_to(REFERENCE / "tiny-sd")
    assert conformance.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.endswith("; broken: boxes as published, tokens as published\n")
