"""Detector, loss and schedule settings as a researcher combines them."""

import pytest
from hydra.utils import instantiate

from tests.config.test_configs import RUNTIME, check_targets, compose_with

LVIS = [*RUNTIME, "experiment=lvis_rare"]


@pytest.mark.parametrize("name", ["softmax", "federated", "seesaw", "eqlv2"])
def test_every_loss_goes_with_lvis_and_knows_its_classes(name):
    cfg = compose_with([*LVIS, f"model/classification_loss={name}", "model.backbone.weights=none"])
    check_targets(cfg)
    loss = instantiate(cfg.model.classification_loss)
    assert loss.num_classes == 1203
    assert loss.num_logits == 1203 + {"softmax": 1, "federated": 0, "seesaw": 2, "eqlv2": 1}[name]


def test_average_keeps_whole_checkpoints():
    cfg = compose_with([*LVIS, "callbacks=ema"])
    assert cfg.callbacks.ema.decay == 0.9998 and cfg.callbacks.best.save_weights_only is False
    assert cfg.callbacks.best.monitor == "val/segm/AP" and cfg.callbacks.last.every_n_train_steps == 2000


def test_schedules_fit_their_lengths():
    long = compose_with([*LVIS, "optim=sgd_2x", "trainer=lvis_2x", "model=mask_rcnn_r101_fpn"])
    assert long.trainer.max_steps == 180_000 and long.trainer.precision == "bf16-mixed"
    assert list(long.optim.lr_schedule.milestones_steps) == [120_000, 160_000]
    assert long.model.backbone.depth == 101
    assert long.model.classification_loss.num_classes == 1203
    mixed = compose_with([*LVIS, "optim=sgd_2x"])
    assert mixed.optim.lr_schedule.total_steps == 90_000  # told as an error when the module is built
