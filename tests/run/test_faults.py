"""Two trials of each fault of `benchmarks/faults.py`: nothing hangs, is lost or overused, all is told."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from faults import NUM_TRIALS, build_world, run_trials

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*__array__ implementation.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("kind", NUM_TRIALS)
def test_a_fault_harms_nothing_and_is_told(kind, tmp_path, world):
    outcomes = run_trials(kind, 2, seed=1, folder=tmp_path, world=world)
    if not outcomes:
        pytest.skip("mounting a small disk needs root")
    assert len(outcomes) == 2
    assert all(outcome.is_clean for outcome in outcomes), outcomes
