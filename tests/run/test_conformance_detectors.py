"""The published detectors' outputs, where present: ``$MFLIGHT_REFERENCE``, else ../shared/reference."""

import pytest

from tests import conformance_detectors
from tests.reference import REFERENCE

CASES = conformance_detectors.cases(REFERENCE / "detectors")


@pytest.mark.skipif(not CASES, reason="MFLIGHT_REFERENCE is absent")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_part_of_a_detector_is_the_published_one(path):
    assert conformance_detectors.broken(conformance_detectors.run_case(path)) == []


def test_a_figure_of_a_detector_beyond_its_tolerance_fails(tmp_path, capsys, monkeypatch):
    assert conformance_detectors.broken({"a": (1e-7, "scores"), "b": (2e-6, "scores")}) == ["b"]
    assert conformance_detectors.broken({"nan": (float("nan"), "scores")}) == ["nan"]
    assert conformance_detectors.main([str(tmp_path)]) == 1
    assert "no case of a detector in" in capsys.readouterr().out
    verdicts = [("good", {"a": (0.0, "targets")}), ("bad", {"a": (1.0, "targets")})]
    monkeypatch.setattr(conformance_detectors, "run_cases", lambda folder: iter(verdicts))
    assert conformance_detectors.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == "PASS good a=0.0e+00\nFAIL bad a=1.0e+00; broken: a\n"
