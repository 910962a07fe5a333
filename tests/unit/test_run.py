import logging
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from mflight.run import _continue_from, _remember_pool, _say, _share_device

SERVICE = {"takes_turns": False, "num_samples": None, "high_water": 256}


def config(run_dir, resume_from=None, **synthesis):
    paths = {"run_dir": str(run_dir), "pool_dir": str(run_dir / "pool")}
    cfg = OmegaConf.create(
        {"paths": paths, "resume_from": resume_from, "synthesis": {"service": SERVICE, **synthesis}}
    )
    OmegaConf.set_struct(cfg, True)
    return cfg


def begin(run_dir, resume_from=None):
    """Do what a run does with its folders, up to its first checkpoint; return its pool."""
    run_dir.mkdir()
    cfg = config(run_dir, resume_from and str(resume_from))
    _continue_from(cfg)
    _remember_pool(cfg)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "last.ckpt").touch()
    return cfg.paths.pool_dir


def test_a_run_resumed_twice_keeps_the_pool_of_the_first(tmp_path):
    pool = begin(tmp_path / "first")
    (tmp_path / "first" / "pool").mkdir()
    assert begin(tmp_path / "second", tmp_path / "first") == pool
    assert begin(tmp_path / "third", tmp_path / "second") == pool
    assert begin(tmp_path / "alone") == str(tmp_path / "alone" / "pool")
    assert not (tmp_path / "alone" / "pool").exists()


def shared(tmp_path, single_gpu):
    cfg = config(tmp_path, single_gpu=single_gpu, sharing=None, turn_steps=16, fill_samples=40)
    _share_device(cfg, "cuda:0")
    return cfg.synthesis


def test_the_log_says_how_a_single_gpu_is_shared_and_what_it_costs(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        turns = shared(tmp_path, "take_turns")
        filled = shared(tmp_path, "fill_first")
    assert (turns.sharing, turns.service) == ("take_turns", SERVICE | {"takes_turns": True})
    assert (filled.sharing, filled.service) == (
        "fill_first",
        SERVICE | {"num_samples": 40, "high_water": None},
    )
    assert "take turns on cuda:0. After every 16 steps training waits for one batch" in caplog.text
    assert "40 samples are drawn on cuda:0 first. Training waits until then" in caplog.text
    with pytest.raises(ValueError, match=r"synthesis\.single_gpu must be one of .*, got 'both'"):
        shared(tmp_path, "both")


def test_what_paste_leaves_without_effect_is_said(tmp_path, caplog):
    split = SimpleNamespace(
        accelerator="cpu", trainer_devices=1, trainer_threads=1, synthesis_devices=(), shares_gpu=False
    )
    said = "synthesis.background_loss=false has no effect with synthesis/paste"
    for paste, background_loss, is_said in (({}, False, True), ({}, True, False), (None, False, False)):
        cfg = config(tmp_path, paste=paste, background_loss=background_loss)
        with caplog.at_level(logging.INFO):
            _say(cfg, split, None)
        assert (said in caplog.text) == is_said
        caplog.clear()
