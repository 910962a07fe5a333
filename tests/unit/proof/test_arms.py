"""What the arms train on, from the composed config."""

import pytest
from hydra.utils import instantiate

from mflight.proof.arms import build_arms, equal_time_arm, equal_time_steps, machine_s, training_overrides
from tests.config.test_configs import RUNTIME, compose_with

ALL = ("equal_real", "equal_images", "equal_time")


def compose_arms(*overrides, accounts=ALL):
    arms = build_arms(overrides, compose_with([*RUNTIME, *overrides]), accounts)
    return {arm.name: compose_with([*RUNTIME, *arm.overrides]) for arm in arms}


def images(cfg):
    """Return real and synthetic images over the whole training; the control's are all real."""
    steps = cfg.trainer.max_steps
    share = instantiate(cfg.datamodule.share).over(num_steps=steps, num_ranks=1)
    real, synthetic = (
        sum(counts) for counts in zip(*(share.counts(step) for step in range(steps)), strict=True)
    )
    return (real + synthetic, 0) if cfg.synthesis.control else (real, synthetic)


@pytest.mark.parametrize("mixing", ["add", "replace"])
def test_accounts_hold_as_many_real_images_and_as_many_images(mixing):
    arms = compose_arms(
        f"synthesis.mixing={mixing}", "synthesis.synthetic_ratio=0.25", "trainer.max_steps=400"
    )
    real, synthetic = images(arms["synthesis"])
    assert synthetic > 200
    assert images(arms["real_only"]) == (pytest.approx(real, abs=4), 0)
    assert images(arms["control"]) == (real + synthetic, 0)
    assert arms["real_only"].trainer.max_steps == (400 if mixing == "add" else round(real / 4))


@pytest.mark.parametrize("overrides", [["synthesis=replay", "paths.pool_dir=p"], ["experiment=lvis_rare"]])
def test_arms_on_real_images_draw_and_read_nothing(overrides):
    arms = compose_arms(*overrides, "synthesis.warmup_steps=7")
    for name in ("real_only", "control"):
        assert arms[name].synthesis.stream is None and arms[name].synthesis.service is None
    assert arms["real_only"].synthesis.synthetic_ratio == 0
    for key in ("mixing", "synthetic_ratio", "warmup_steps", "cooldown_ratio"):
        assert arms["control"].synthesis[key] == arms["synthesis"].synthesis[key], key
    assert (
        arms["control"].model == arms["synthesis"].model and arms["control"].optim == arms["synthesis"].optim
    )


def test_machine_time_counts_devices_of_both_sides_once():
    # 8 trainers for 100 s and 300 s of drawing; then one device, 30 s of whose 100 s were the generator's
    assert machine_s({"train_s": 100.0, "num_ranks": 8, "synthesis/busy_s": 300.0}) == 1100.0
    assert machine_s({"train_s": 100.0, "synthesis/turns_s": 30.0, "synthesis/busy_s": 30.0}) == 100.0
    real = {"steps": 700, "train_s": 200.0}
    assert equal_time_steps(real, {"steps": 700, "train_s": 220.0, "synthesis/busy_s": 180.0}) == 1400


def test_a_longer_schedule_moves_its_milestones():
    overrides = ["experiment=lvis_rare"]
    arm = equal_time_arm(overrides, compose_with([*RUNTIME, *overrides]), num_steps=135_000)
    cfg = compose_with([*RUNTIME, *arm.overrides])
    assert cfg.trainer.max_steps == 135_000
    assert list(cfg.optim.lr_schedule.milestones_steps) == [90_000, 120_000]


@pytest.mark.parametrize(
    ("overrides", "accounts", "sentence"),
    [
        (["synthesis=none"], ALL, r"a proof needs synthetic images: .* got 0.0"),
        (["synthesis=control"], ALL, "a proof needs synthetic images"),
        (["trainer.max_steps=-1"], ALL, r"trainer\.max_steps is -1"),
        ([], ("equal_luck",), r"accounts must be some of equal_real, .*, got \['equal_luck'\]"),
        ([], (), r"got \[\]"),
    ],
)
def test_what_proves_nothing_is_refused(overrides, accounts, sentence):
    with pytest.raises(ValueError, match=sentence):
        compose_arms(*overrides, accounts=accounts)


def test_keys_of_the_proof_are_not_for_the_trainings():
    given = ["seeds=[0,1]", "jobs=2", "output=x", "accounts=[equal_real]", "trainer.max_steps=5", "+data.x=1"]
    assert training_overrides(given) == ["trainer.max_steps=5", "+data.x=1"]
    with pytest.raises(ValueError, match=r"seed=3 has no place in a proof: .*seeds="):
        training_overrides(["seed=3"])
    with pytest.raises(ValueError, match="resume_from=x has no place"):
        training_overrides(["resume_from=x"])
