"""What is wrong with a proof is said before anything is trained."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from mflight.prove import Proof
from tests.config.test_configs import CONF


def make_proof(folder, *overrides):
    given = [*overrides, f"output={folder}"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Proof(compose("prove", given), given)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("seeds=3", r"seeds must be a list, such as seeds=\[0,1,2\], got 3"),
        ("seeds=[0,0]", r"seeds must be whole numbers, each once, got \[0, 0\]"),
        ("accounts=equal_real", r"accounts must be a list, .* got equal_real"),
        ("synthesis=replay", r"synthesis=replay needs a pool, paths.pool_dir=\./pool holds none"),
        ("++paths.pool_dir=mine", "paths.pool_dir=mine is for synthesis=replay"),
        ("callbacks.timer=null accounts=[equal_real]", r"needs callbacks\.timer, .* got null"),
        ("data=lvis_v1", "the dataset is not there: data.train_annotations="),
    ],
)
def test_mistakes_are_told_by_their_value(tmp_path, overrides, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        make_proof(tmp_path, *overrides.split())
    assert list(tmp_path.iterdir()) == []


def test_runs_have_their_folders_and_those_that_draw_come_first(tmp_path):
    proof = make_proof(tmp_path, "seeds=[3,5]", "trainer.max_steps=40")
    expected = ["synthesis 3", "synthesis 5", "real_only 3", "control 3", "real_only 5", "control 5"]
    assert [f"{run.arm} {run.seed}" for run in proof.all_runs] == expected
    assert [run.draws for run in proof.all_runs] == [True, True, False, False, False, False]
    assert proof.all_runs[1].folder == tmp_path / "synthesis" / "seed_5"
    assert {"seed=5", "trainer.max_steps=40"} <= set(proof.all_runs[1].overrides)
    assert proof.pools == [tmp_path / "synthesis" / f"seed_{seed}" / "pool" for seed in (3, 5)]
