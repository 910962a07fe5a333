import dataclasses
import logging

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mflight.data.lvis import read_categories
from mflight.training.run_plan import PLAN_FILE, RunPlan, plan_run
from tests.config.test_configs import CONF


def config(run_dir, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[f"paths.run_dir={run_dir}", *overrides])


def test_it_decides_what_the_config_leaves_open_and_leaves_the_config_alone(tmp_path):
    cfg = config(tmp_path / "run", "trainer.accelerator=cpu", "trainer.devices=2")
    before = OmegaConf.to_container(cfg, resolve=False)
    plan = plan_run(cfg)
    assert OmegaConf.to_container(cfg, resolve=False) == before
    assert (plan.devices, plan.num_ranks, plan.synthesis_devices, plan.sharing) == (2, 2, ("cpu",), None)
    assert plan.pool_dir == tmp_path / "run" / "pool" and plan.draws
    assert plan.config["datamodule"]["synthetic"]["generator"]["devices"] == ["cpu"]
    assert plan.config["datamodule"]["synthetic"]["generator"]["num_threads"] == plan.num_threads
    assert not (tmp_path / "run").exists()


def test_a_rank_reads_the_plan_that_was_written(tmp_path):
    plan = plan_run(config(tmp_path / "run", "trainer.accelerator=cpu"))
    plan.write()
    assert RunPlan.read(tmp_path / "run" / PLAN_FILE) == plan
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.num_threads = 3


def test_without_a_share_of_synthetic_images_nothing_is_drawn(tmp_path):
    plan = plan_run(config(tmp_path, "trainer.accelerator=cpu", "synthesis.synthetic_ratio=0"))
    assert not plan.draws and plan.pool_dir is None and plan.synthesis_devices == ()
    assert plan.config["datamodule"]["synthetic"] is None


def test_a_pool_to_replay_has_to_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"paths\.pool_dir={tmp_path}/nowhere holds none"):
        plan_run(config(tmp_path, "synthesis=replay", f"paths.pool_dir={tmp_path}/nowhere"))


@pytest.mark.parametrize("sharing", ["take_turns", "fill_first"])
def test_the_log_says_how_a_single_gpu_is_shared_and_what_it_costs(tmp_path, caplog, monkeypatch, sharing):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with caplog.at_level(logging.WARNING):
        plan = plan_run(config(tmp_path, f"synthesis.single_gpu={sharing}", "synthesis.fill_samples=40"))
    assert (plan.sharing, plan.devices, plan.synthesis_devices) == (sharing, (0,), ("cuda:0",))
    generator = plan.config["datamodule"]["synthetic"]["generator"]
    decided = generator["takes_turns"], generator["num_samples"], generator["high_water"]
    if sharing == "take_turns":
        assert decided == (True, None, 256)
        assert "take turns on cuda:0. After every 16 steps training waits for one batch" in caplog.text
    else:
        assert decided == (False, 40, None)
        assert "40 samples are drawn on cuda:0 first. Training waits until then" in caplog.text


def test_another_way_to_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"synthesis\.single_gpu must be one of .*, got 'both'"):
        plan_run(config(tmp_path, "synthesis.single_gpu=both"))


def test_the_number_of_classes_is_that_of_the_annotations(tmp_path, tiny_world):
    ready = [f"data.root={tiny_world}", "data.num_classes=null", "data.prepare=null"]
    cfg = config(tmp_path, "trainer.accelerator=cpu", *ready)
    num_classes = len(read_categories(tiny_world / "train.json"))
    assert plan_run(cfg).config["model"]["num_classes"] == num_classes
