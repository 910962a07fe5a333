"""Detector, loss and schedule settings as a researcher combines them."""

import math

import pytest
import torch
from hydra.utils import instantiate

from mflight.detection.loss_weights import SyntheticLosses
from tests.config.test_configs import RUNTIME, check_targets, compose_with
from tests.unit.detection.test_mask_rcnn import LOSSES, draw_shapes

LVIS = [*RUNTIME, "experiment=lvis_rare"]
BASELINE = [*RUNTIME, "experiment=lvis_baseline", "model.backbone.weights=none"]
PUBLISHED = {  # of each loss: its paper's, or the named repository's
    "softmax": {},
    "federated": {"num_sampled": 50, "frequency_power": 0.5, "prior": 0.01},
    "seesaw": {"p": 0.8, "q": 2.0, "min_score": 0.01},
    "eqlv2": {"alpha": 4.0, "gamma": 12.0, "mu": 0.8, "prior": 0.001},
}


def test_the_baseline_has_detectron2s_settings_for_lvis():
    model = instantiate(compose_with(BASELINE).model)
    rpn, heads = model.rpn, model.roi_heads
    assert (heads.score_thresh, heads.detections_per_img, heads.nms_thresh) == (1e-4, 300, 0.5)
    assert rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert rpn._post_nms_top_n == {"training": 1000, "testing": 1000}
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert rpn.anchor_generator.aspect_ratios == ((0.5, 1.0, 2.0),) * 5
    model.eval()
    assert model.transform.resize(torch.zeros(3, 60, 80))[0].shape == (3, 800, 1066)
    assert model.transform.resize(torch.zeros(3, 40, 80))[0].shape == (3, 666, 1333)
    assert heads.box_predictor.cls_score.out_features == 1204
    assert heads.box_predictor.bbox_pred.out_features == 4816  # 4 x 1204: boxes are per class
    assert heads.mask_predictor.mask_fcn_logits.out_channels == 1204
    assert [len(model.backbone.body[f"layer{stage}"]) for stage in (1, 2, 3, 4)] == [3, 4, 6, 3]


def test_a_deeper_backbone_learns():
    few = ["model.rpn_post_nms_top_n_train=100", "model.box_batch_size_per_image=32"]
    torch.manual_seed(0)
    model = instantiate(compose_with([*BASELINE, "model=mask_rcnn_r101_fpn", *few]).model)
    assert [len(model.backbone.body[f"layer{stage}"]) for stage in (1, 2, 3, 4)] == [3, 4, 23, 3]
    losses = model(*draw_shapes())
    assert set(losses) == LOSSES and all(torch.isfinite(value) for value in losses.values())
    assert losses["loss_classifier"].item() == pytest.approx(math.log(1204), rel=0.2)


def test_the_1x_schedule_falls_at_60k_and_80k_of_90k_steps():
    cfg = compose_with(BASELINE)
    assert cfg.trainer.max_steps == 90_000 and cfg.data.batch_size == 16
    optimizer = instantiate(cfg.optim.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.9, 1e-4)
    (factor,) = instantiate(cfg.optim.lr_schedule)(optimizer).lr_lambdas
    steps = (0, 500, 1000, 59_999, 60_000, 79_999, 80_000, 89_999)
    assert [factor(step) for step in steps] == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_loss_goes_with_lvis_and_knows_its_classes(name):
    cfg = compose_with([*LVIS, f"model/classification_loss={name}", "model.backbone.weights=none"])
    check_targets(cfg)
    node = cfg.model.classification_loss
    assert {key: node[key] for key in set(node) - {"_target_", "num_classes", "categories"}} == PUBLISHED[
        name
    ]
    loss = instantiate(node)
    assert loss.num_classes == 1203
    assert loss.num_logits == 1203 + {"softmax": 1, "federated": 0, "seesaw": 2, "eqlv2": 1}[name]


@pytest.mark.parametrize(
    "base",
    [RUNTIME, BASELINE, [*RUNTIME, "model=centernet2_mini"]],
    ids=["mini", "lvis", "centernet2"],
)
def test_what_is_learnt_from_synthetic_images_reaches_every_loss(base):
    changes = ["synthesis.losses=[boxes,masks]", "synthesis.loss_weight=0.5"]
    model = instantiate(compose_with([*base, *changes]).model)
    for part in (model.rpn, model.roi_heads):
        assert part.synthetic_losses == SyntheticLosses(0.5, ("boxes", "masks"))


@pytest.mark.parametrize("name", ["lvis_centernet2_r50", "lvis_centernet2_swin_b"])
def test_centernet2_has_detics_settings(name):
    cfg = compose_with([*RUNTIME, f"experiment={name}", "model.backbone.weights=none"])
    baseline = compose_with([*RUNTIME, f"experiment={name}", "synthesis=none"])
    assert baseline.synthesis.service is None and baseline.synthesis.synthetic_ratio == 0
    is_swin = name.endswith("swin_b")
    assert (cfg.trainer.max_steps, cfg.data.batch_size) == ((180_000, 32) if is_swin else (90_000, 64))
    assert list(cfg.data.transform.crop_hw) == [896 if is_swin else 640] * 2
    assert list(cfg.data.transform.jitter_range) == [0.1, 2.0]
    assert (cfg.trainer.gradient_clip_val, cfg.trainer.gradient_clip_algorithm) == (1.0, "value")
    optimizer = instantiate(cfg.optim.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], group["weight_decay"]) == (1e-4 if is_swin else 2e-4, 1e-4)
    (factor,) = instantiate(cfg.optim.lr_schedule)(optimizer).lr_lambdas
    half = cfg.trainer.max_steps // 2
    assert [factor(0), factor(half), factor(2 * half)] == pytest.approx([1e-4, 0.5, 0.0])
    model = instantiate(cfg.model)
    rpn, heads = model.rpn, model.roi_heads
    assert (rpn.num_training, rpn.num_evaluation, rpn.nms_thresh) == ((4000, 2000), (1000, 256), 0.9)
    assert (heads.score_thresh, heads.detections_per_img, heads.nms_thresh) == (0.02, 300, 0.5)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert heads.classification_loss._num_sampled == 49
    assert heads.box_predictor[2].classifier.out_features == 1203
    assert [coder.weights for coder in heads.box_coders] == [
        (10, 10, 5, 5),
        (20, 20, 10, 10),
        (30, 30, 15, 15),
    ]


def test_the_prior_correction_is_a_plain_override():
    assert instantiate(compose_with(RUNTIME).module.prior_correction).tau == 0.0
    prior = compose_with([*LVIS, "module.prior_correction.tau=0.5", "module.prior_correction.target=uniform"])
    built = instantiate(prior.module.prior_correction)
    assert (built.tau, built.target) == (0.5, "uniform")


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
