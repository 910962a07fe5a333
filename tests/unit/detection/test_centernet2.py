import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from mflight.data.categories import Categories, Category
from mflight.detection.backbones import MiniFPN, build_resnet_fpn
from mflight.detection.centernet2.cascade import RegionPool
from mflight.detection.centernet2.detector import build_centernet2
from mflight.detection.losses import FederatedLoss, SeesawLoss, SoftmaxLoss
from mflight.detection.results import predictions_to_rle
from mflight.detection.swin import SwinFPN
from mflight.detection.vocabulary import read_text_embeddings
from tests.unit.detection.test_mask_rcnn import SIDE, draw_shapes
from tests.unit.two_ranks import on_two_ranks

STAGED = {f"{name}_{stage}" for name in ("class", "box") for stage in range(3)}
LOSSES = {"center_object", "center_background", "center_box", "mask"} | STAGED


def federated(num_classes=3):
    categories = [Category(n, f"class {n}", image_count=n) for n in range(1, num_classes + 1)]
    return FederatedLoss(num_classes=num_classes, categories=lambda: Categories(categories), num_sampled=49)


def build_tiny(**changes):
    torch.manual_seed(0)
    settings = {
        "backbone": MiniFPN(stage_channels=(16, 32, 32, 32), out_channels=32),
        "num_classes": 3,
        "min_size": None,
        "strides": (4, 8, 16, 32),
        "num_proposals_train": (100, 50),
        "num_proposals_test": (100, 20),
        "box_batch_size_per_image": 32,
        "box_head_channels": 64,
        "mask_head_channels": (16,),
        "roi_sampling_ratio": 1,
    }
    changes = {"classification_loss": federated(), **changes}
    return build_centernet2(**{**settings, **changes})


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.npy"
    np.save(path, np.random.default_rng(0).normal(size=(3, 8)).astype(np.float16))
    return path


@pytest.mark.parametrize(
    "loss", [federated, lambda: SoftmaxLoss(num_classes=3), lambda: SeesawLoss(num_classes=3)]
)
def test_losses_and_predictions_keep_the_contract(loss):
    model = build_tiny(classification_loss=loss(), box_detections_per_img=30)
    images, targets = draw_shapes()
    losses = model(images, targets)
    assert set(losses) == LOSSES and all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    for image, prediction in zip(images, model.eval()(images), strict=True):
        count = len(prediction["labels"])
        assert 0 < count <= 30 and prediction["roi_masks"].shape == (count, 1, 28, 28)
        assert 1 <= prediction["labels"].min() and prediction["labels"].max() <= 3
        assert (prediction["scores"].diff() <= 0).all() and prediction["scores"].min() > 0.02
        assert 0 <= prediction["boxes"].min() and prediction["boxes"].max() <= SIDE
        assert len(predictions_to_rle(prediction, tuple(image.shape[-2:]))) == count


def test_a_batch_without_instances_gives_finite_losses_and_reaches_every_weight():
    images, targets = draw_shapes()
    model = build_tiny()
    losses = model(images[2:], targets[2:])
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(losses[name] == 0 for name in ("center_object", "center_box", "box_0", "box_2", "mask"))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_it_learns_three_shapes():
    model, (images, targets) = build_tiny(), draw_shapes()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()
    for prediction, target in zip(model.eval()(images)[:2], targets[:2], strict=True):
        assert sorted(prediction["labels"][:2].tolist()) == sorted(target["labels"].tolist())
        order = target["labels"].argsort()[prediction["labels"][:2].argsort().argsort()]
        assert (prediction["boxes"][:2] - target["boxes"][order]).abs().max() < 6


def synthetic_batch(**extra):
    images, targets = draw_shapes()
    targets = [dict(target) for target in targets[:2]]
    targets[0] |= {"is_synthetic": True, **extra}
    return images[:2], targets


def gradients(model, batch):
    model.zero_grad()
    torch.manual_seed(1)
    losses = model(*batch)
    sum(losses.values()).backward()
    return losses, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_synthetic_images_of_no_weight_teach_nothing():
    weighted, plain = build_tiny(synthetic_loss_weight=0.0), build_tiny()
    losses, found = gradients(weighted, synthetic_batch())
    same, unweighted = gradients(plain, synthetic_batch())
    assert {name: value.item() for name, value in losses.items()} == {k: v.item() for k, v in same.items()}
    assert any(not torch.equal(found[name], unweighted[name]) for name in found)
    images, targets = synthetic_batch()
    for target in targets:
        target["is_synthetic"] = True
    _, nothing = gradients(weighted, (images, targets))
    assert all(not gradient.any() for gradient in nothing.values())


@pytest.mark.parametrize(
    ("loss", "reached"),
    [
        ("classification", "roi_heads.box_predictor.2.classifier.weight"),
        ("boxes", "roi_heads.box_predictor.2.box.weight"),
        ("masks", "roi_heads.mask_predictor.conv5_mask.weight"),
        ("proposals", "rpn.head.heat.weight"),
    ],
)
def test_synthetic_images_are_learnt_from_by_the_losses_that_are_named(loss, reached):
    images, targets = synthetic_batch()
    model = build_tiny(synthetic_losses=(loss,))
    _, found = gradients(model, (images[:1], targets[:1]))
    others = {
        "roi_heads.box_predictor.2.classifier.weight",
        "roi_heads.box_predictor.2.box.weight",
        "roi_heads.mask_predictor.conv5_mask.weight",
        "rpn.head.heat.weight",
    } - {reached}
    assert found[reached].any() and not any(found[name].any() for name in others)


def center_losses_on_rank(rank):
    images, targets = draw_shapes()
    own = slice(0, 1) if rank == 0 else slice(2, 3)  # two instances, and none
    losses = build_tiny()(images[own], targets[own])
    return {name: value.item() for name, value in losses.items() if name.startswith("center")}


def test_the_first_stage_is_divided_by_the_mean_count_over_the_ranks(tmp_path):
    first, second = on_two_ranks(center_losses_on_rank, tmp_path)
    images, targets = draw_shapes()
    alone = build_tiny()(images[:1], targets[:1])
    for name in ("center_object", "center_background", "center_box"):
        assert first[name] == pytest.approx(2 * alone[name].item(), rel=1e-4), name
    assert second["center_object"] == second["center_box"] == 0 and second["center_background"] > 0


def test_ignored_parts_are_no_background():
    whole = torch.tensor([[0.0, 0, SIDE, SIDE]])
    images, targets = draw_shapes()
    empty = {**targets[2], "ignore_boxes": whole}
    losses = build_tiny()(images[2:], [empty])
    assert losses["center_background"] == 0 and all(losses[f"class_{k}"] == 0 for k in range(3))
    model = build_tiny()
    half = model.rpn.losses
    seen = {}
    model.rpn.losses = lambda *args: seen.setdefault("losses", half(*args))
    model(images[:1], [{**targets[0], "ignore_boxes": whole}])
    plain = build_tiny()(images[:1], targets[:1])
    assert seen["losses"]["center_object"] == plain["center_object"], "centres count as before"
    assert seen["losses"]["center_background"] < plain["center_background"]
    assert seen["losses"]["center_box"] > 0, "the locations on a centre learn their boxes"


def test_a_region_is_pooled_from_the_level_of_its_size_with_exact_corners():
    generator = torch.Generator().manual_seed(0)
    features = {f"p{k}": torch.rand(2, 3, 256 >> k, 256 >> k, generator=generator) for k in (3, 4, 5)}
    small, large = torch.tensor([[8.0, 8, 40, 48]]), torch.tensor([[0.0, 0, 250, 250]])
    pool = RegionPool(7, strides=(8, 16, 32), sampling_ratio=0)
    pooled = pool(features, [torch.cat([large, small]), small])
    for row, image, box, level, stride in (
        (0, 0, large, "p4", 16),
        (1, 0, small, "p3", 8),
        (2, 1, small, "p3", 8),
    ):
        own = features[level][image : image + 1]
        wanted = roi_align(own, [box], 7, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)
        assert torch.equal(pooled[row], wanted[0])


def test_texts_classify_without_bias_and_are_never_trained(texts):
    model = build_tiny(text_embeddings=texts)
    losses, _ = gradients(model, draw_shapes())
    assert losses["class_0"] > 2, "scores start scattered around 0.5"
    classifier = model.roi_heads.box_predictor[0].classifier
    assert torch.allclose(classifier.embeddings.norm(dim=1), torch.ones(3))
    logits = classifier(torch.randn(5, 64))
    assert logits.abs().max() <= 50
    assert "roi_heads.box_predictor.0.classifier.embeddings" in model.state_dict()
    assert not any("embeddings" in name for name, _ in model.named_parameters())


def test_faulty_settings_are_refused(tmp_path, texts):
    with pytest.raises(ValueError, match=r"num_classes must be model\.num_classes=3, got 4"):
        build_tiny(classification_loss=federated(4))
    with pytest.raises(ValueError, match=r"one logit a class, .* got SoftmaxLoss"):
        build_tiny(classification_loss=SoftmaxLoss(num_classes=3), text_embeddings=texts)
    with pytest.raises(ValueError, match="multiple of 32, got 16"):
        build_tiny(backbone=MiniFPN(stage_channels=(16, 16, 16, 16), out_channels=16))
    with pytest.raises(FileNotFoundError, match=r"'.*nowhere\.npy' is none"):
        build_tiny(text_embeddings=tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match=r"each of the 4 classes, float\[4, D\], it holds float16\[3, 8\]"):
        read_text_embeddings(texts, num_classes=4)
    np.save(tmp_path / "zero.npy", np.zeros((3, 8)))
    with pytest.raises(ValueError, match="label 1 has no direction"):
        read_text_embeddings(tmp_path / "zero.npy", num_classes=3)
    (tmp_path / "code.npy").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match=r"code\.npy must be a \.npy of float"):
        read_text_embeddings(tmp_path / "code.npy", num_classes=3)


def test_a_resnet_gives_the_levels_of_strides_8_to_128():
    backbone = build_resnet_fpn(weights="none", levels="p3_p7")
    with torch.no_grad():
        levels = backbone.eval()(torch.zeros(1, 3, 96, 160))
    assert [tuple(level.shape[-2:]) for level in levels.values()] == [
        (12, 20),
        (6, 10),
        (3, 5),
        (2, 3),
        (1, 2),
    ]
    assert all(parameter.requires_grad for parameter in backbone.parameters())


SMALL_SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def test_a_swin_takes_any_size_and_every_weight_is_reached():
    torch.manual_seed(0)
    backbone = SwinFPN(weights="none", **SMALL_SWIN)
    levels = backbone(torch.rand(1, 3, 96, 160))
    assert [tuple(level.shape[-2:]) for level in levels.values()] == [
        (12, 20),
        (6, 10),
        (3, 5),
        (2, 3),
        (1, 2),
    ]
    sum(level.sum() for level in levels.values()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def swin_by_its_authors(backbone: SwinFPN) -> dict[str, torch.Tensor]:
    """The weights of a Swin transformer as its authors call them, with what mflight does not need."""
    state, named = backbone.body.state_dict(), {}
    for key, value in state.items():
        name = key.removeprefix("swin.").removeprefix("encoder.")
        if ".q_proj." in name:
            parts = [state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            named[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
            continue
        if ".k_proj." in name or ".v_proj." in name or name.startswith("hidden_states_norms"):
            continue
        for own, theirs in (
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.norm", "patch_embed.norm"),
            ("attention.o_proj", "attn.proj"),
            ("attention.relative_position_bias.", "attn."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
        ):
            name = name.replace(own, theirs)
        named[name] = value
    named["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    return named | {"norm.weight": torch.ones(64), "head.weight": torch.zeros(5, 64)}


def test_a_swin_starts_from_its_authors_file_or_a_folder_and_refuses_others(tmp_path):
    torch.manual_seed(0)
    donor = SwinFPN(weights="none", **SMALL_SWIN)
    torch.save({"model": swin_by_its_authors(donor)}, tmp_path / "swin.pth")
    donor.body.swin.layernorm = torch.nn.LayerNorm(64)
    donor.body.save_pretrained(tmp_path / "folder")
    for weights in (tmp_path / "swin.pth", tmp_path / "folder"):
        started = SwinFPN(weights=str(weights), **SMALL_SWIN).body.state_dict()
        for key, value in donor.body.state_dict().items():
            if not key.startswith(("hidden_states_norms", "swin.layernorm")):
                assert torch.equal(started[key], value), key
    with pytest.raises(ValueError, match=r"Swin transformer of this size, they differ in \['swin"):
        SwinFPN(weights=str(tmp_path / "swin.pth"), **{**SMALL_SWIN, "embed_dim": 16})
    with pytest.raises(Exception, match="must be 'none', a file, or a Swin transformer's folder"):
        SwinFPN(weights=str(tmp_path / "nowhere"), **SMALL_SWIN)


def by_detic(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a CenterNet2 as Detic calls them, with a background and what mflight does not need."""
    named = {}
    for key, value in model.state_dict().items():
        name = key
        for own, theirs in (
            ("backbone.fpn.inner_blocks.0.0", "backbone.fpn_lateral3"),
            ("backbone.fpn.inner_blocks.1.0", "backbone.fpn_lateral4"),
            ("backbone.fpn.inner_blocks.2.0", "backbone.fpn_lateral5"),
            ("backbone.fpn.layer_blocks.0.0", "backbone.fpn_output3"),
            ("backbone.fpn.layer_blocks.1.0", "backbone.fpn_output4"),
            ("backbone.fpn.layer_blocks.2.0", "backbone.fpn_output5"),
            ("backbone.fpn.extra_blocks", "backbone.top_block"),
            ("backbone.body", "backbone.bottom_up.base"),
            ("rpn.head.tower", "proposal_generator.centernet_head.bbox_tower"),
            ("rpn.head.box", "proposal_generator.centernet_head.bbox_pred"),
            ("rpn.head.heat", "proposal_generator.centernet_head.agn_hm"),
            (".fc6.", ".fc1."),
            (".fc7.", ".fc2."),
            (".classifier.project.", ".cls_score.linear."),
            (".box.", ".bbox_pred."),
            ("mask_predictor.conv5_mask", "mask_head.deconv"),
            ("mask_predictor.mask_fcn_logits", "mask_head.predictor"),
            *((f"mask_head.{n}.0.", f"mask_head.mask_fcn{n + 1}.") for n in range(4)),
        ):
            name = name.replace(own, theirs)
        if key == "rpn.head.scales":
            for level, scale in enumerate(value):
                named[f"proposal_generator.centernet_head.scales.{level}.scale"] = scale[None]
        elif ".classifier.embeddings" in key:
            zeros = value.new_zeros(value.shape[1], 1)
            named[key.replace("classifier.embeddings", "cls_score.zs_weight")] = torch.cat(
                [value.T, zeros], 1
            )
        elif ".classifier.weight" in key or ".classifier.bias" in key:
            named[key.replace("classifier", "cls_score")] = torch.cat([value, value[:1] * 0])
        else:
            named[name] = value
    for stage in range(3):
        named[f"roi_heads.box_predictor.{stage}.freq_weight"] = torch.ones(3)
    return named | {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}


def build_small_r50(seed, **changes):
    torch.manual_seed(seed)
    settings = {
        "backbone": build_resnet_fpn(weights="imagenet", levels="p3_p7", detector_weights="later.pth"),
        "classification_loss": federated(changes.get("num_classes", 3)),
        "num_classes": 3,
        "box_head_channels": 16,
        "mask_head_channels": (8, 8, 8, 8),
    }
    return build_centernet2(**{**settings, **changes})


@pytest.mark.parametrize("by_texts", [False, True])
def test_detics_weights_are_all_used_or_named(tmp_path, texts, caplog, by_texts):
    extra = {"text_embeddings": texts} if by_texts else {}
    donor = build_small_r50(0, **extra)
    torch.save({"model": by_detic(donor)}, tmp_path / "detic.pth")
    with caplog.at_level("INFO"):
        started = build_small_r50(1, weights=tmp_path / "detic.pth", **extra)
    for key, value in donor.state_dict().items():
        assert torch.equal(started.state_dict()[key], value), key
    assert "pixel_mean" in caplog.text and "roi_heads.box_predictor.2.freq_weight" in caplog.text

    strange = {**by_detic(donor), "roi_heads.caption_head.weight": torch.zeros(1)}
    torch.save({"model": strange}, tmp_path / "strange.pth")
    with pytest.raises(ValueError, match=r"unknown \['roi_heads\.caption_head\.weight'\]"):
        build_small_r50(1, weights=tmp_path / "strange.pth", **extra)
    del strange["roi_heads.caption_head.weight"], strange["backbone.fpn_lateral4.weight"]
    torch.save({"model": strange}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"lacks \['backbone\.fpn\.inner_blocks\.1\.0\.weight'\]"):
        build_small_r50(1, weights=tmp_path / "half.pth", **extra)


def test_class_layers_of_other_classes_are_left_out_and_named(tmp_path, caplog):
    torch.save({"model": by_detic(build_small_r50(0))}, tmp_path / "detic.pth")
    started = build_small_r50(1, num_classes=5, weights=tmp_path / "detic.pth")
    assert started.roi_heads.box_predictor[0].classifier.weight.shape == (5, 16)
    assert "roi_heads.box_predictor.0.classifier.weight" in caplog.text


def test_a_resnet_file_of_imagenet_21k_loads_by_name(tmp_path):
    resnet = build_resnet_fpn(weights="none").body
    state = dict(resnet.state_dict()) | {"fc.weight": torch.zeros(11221, 2048), "fc.bias": torch.zeros(11221)}
    path: Path = tmp_path / "resnet50_miil_21k.pth"
    torch.save({"state_dict": state}, path)
    started = build_resnet_fpn(weights=str(path), trainable_layers=5, levels="p3_p7").body
    assert torch.equal(started.layer4[2].conv3.weight, resnet.layer4[2].conv3.weight)
