"""The published program's outputs, where present: ``$MFLIGHT_REFERENCE``, else ../shared/reference."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import conformance

ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ.get("MFLIGHT_REFERENCE", ROOT.parent / "shared" / "reference"))
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


@pytest.mark.skipif(not SOLVER_CASES, reason="MFLIGHT_REFERENCE is absent")
@pytest.mark.parametrize("case", SOLVER_CASES)
def test_bilateral_solver_is_the_published_one(case):
    figures = conformance.bilateral_case(REFERENCE / f"{case}.npz")
    assert conformance.judge_bilateral(case, figures).broken == ()


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
    verdict = conformance.judge_mosaic("case9", FIGURES | {figure: value})
    assert len(verdict.broken) == 1 and verdict.broken[0].startswith(rule)
    assert str(verdict).startswith("FAIL case9")


def test_only_a_cell_at_a_step_may_move_and_only_towards_the_reference():
    maps = [torch.tensor([[1.0, 99.99 / 255], [149.5 / 255, 149.5 / 255]])]
    expected = np.array([[255, 100], [120, 149]], dtype=np.uint8)
    (settled,) = conformance.settle_steps(maps, expected)
    assert settled.int().tolist() == [[255, 100], [149, 149]]
    (kept,) = conformance.settle_steps(maps, np.array([[255, 99], [120, 149]], dtype=np.uint8))
    assert kept.int().tolist() == [[255, 99], [149, 149]]


def test_good_figures_pass_and_are_printed():
    assert str(conformance.judge_mosaic("case9", FIGURES)).startswith("PASS case9 boxes_equal=True")


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
