import logging

import pytest

from mflight.run import _remember_pool, _say
from mflight.training.run_plan import plan_run
from tests.unit.training.test_run_plan import config


def begin(run_dir, resume_from=None):
    """Do what a run does with its folders, up to its first checkpoint; return its pool."""
    run_dir.mkdir()
    plan = plan_run(config(run_dir, "trainer.accelerator=cpu", f"resume_from={resume_from or 'null'}"))
    _remember_pool(plan)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "last.ckpt").touch()
    return plan.pool_dir


def test_a_run_resumed_twice_keeps_the_pool_of_the_first(tmp_path):
    pool = begin(tmp_path / "first")
    (tmp_path / "first" / "pool").mkdir()
    assert begin(tmp_path / "second", tmp_path / "first") == pool
    assert begin(tmp_path / "third", tmp_path / "second") == pool
    assert begin(tmp_path / "alone") == tmp_path / "alone" / "pool"
    assert not (tmp_path / "alone" / "pool").exists()


@pytest.mark.parametrize(
    ("overrides", "is_said"),
    [
        (["synthesis/paste=x_paste"], True),
        (["synthesis/paste=x_paste", "synthesis.background_loss=true"], False),
        ([], False),
    ],
)
def test_what_paste_leaves_without_effect_is_said(tmp_path, caplog, overrides, is_said):
    plan = plan_run(config(tmp_path, "trainer.accelerator=cpu", *overrides))
    with caplog.at_level(logging.INFO):
        _say(plan)
    said = "synthesis.background_loss=false has no effect with synthesis/paste"
    assert (said in caplog.text) == is_said
