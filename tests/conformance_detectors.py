"""Compare mflight's detectors with the published programs: ``python tests/conformance_detectors.py [DIR]``.

DIR (default: ../shared/reference/detectors beside the repository) holds ``index.json``, which describes every
array of its files and the tolerances. Each case prints one line with its figures and PASS or FAIL; any FAIL
makes the exit status 1. Weights are read through the same key maps as published ones.

Two figures are no plain differences. The heat of a location is an exponential, which two processors round
differently, so it has the tolerance of the scores. Where two detections have scores within the tolerance of
each other their order is open: they are compared as sets.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mflight.data.categories import Categories, Category
from mflight.detection.centernet2.cascade import CascadeHeads, RegionPool
from mflight.detection.centernet2.predictors import StagePredictor
from mflight.detection.centernet2.proposals import CenterHead, CenterProposals, Number
from mflight.detection.detector import Proposals
from mflight.detection.loss_weights import SyntheticLosses
from mflight.detection.losses import FederatedLoss
from mflight.detection.predictors import MaskPredictor
from mflight.detection.public_weights import name_detics, name_swins
from mflight.detection.swin import SwinFPN
from mflight.detection.vocabulary import read_text_embeddings
from mflight.functional.centers import center_targets, make_locations
from mflight.training.optim import warmup_cosine

ROOT = Path(__file__).resolve().parents[1]
STRIDES = (8, 16, 32, 64, 128)
TOLERANCES = {
    "targets": 0.0,
    "boxes_px": 1e-3,
    "scores": 1e-6,
    "losses_relative": 1e-5,
    "gradients": 1e-6,
    "masks": 1e-3,
    "features": 2e-6,
}
"""Those of ``index.json``, and what it states of Swin for the outputs of a module."""

Figures = dict[str, tuple[float, str]]
"""Each figure is a difference and the tolerance that it must keep."""

Arrays = dict[str, Tensor]


def main(arguments: list[str] | None = None) -> int:
    """Run every case of a folder; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT.parent / "shared" / "reference" / "detectors"
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="reference folder")
    folder = parser.parse_args(arguments).folder
    torch.set_num_threads(1)
    verdicts = []
    for case, figures in run_cases(folder):
        wrong = broken(figures)
        spelled = " ".join(f"{name}={value:.1e}" for name, (value, _) in figures.items())
        end = f"; broken: {', '.join(wrong)}" if wrong else ""
        print(f"{'FAIL' if wrong else 'PASS'} {case} {spelled}{end}", flush=True)
        verdicts.append(not wrong)
    if not verdicts:
        print(f"FAIL no case of a detector in {folder}")
    return 0 if verdicts and all(verdicts) else 1


def broken(figures: Figures) -> list[str]:
    """Return the names of the figures beyond their tolerance."""
    return [name for name, (value, kind) in figures.items() if not value <= TOLERANCES[kind]]


def cases(folder: Path) -> list[Path]:
    """Return the files of ``folder`` that there is a comparison for."""
    return sorted(path for path in folder.glob("*") if _comparison(path) is not None)


def run_cases(folder: Path) -> Iterator[tuple[str, Figures]]:
    """Yield the name and the figures of each case in ``folder``."""
    for path in cases(folder):
        yield path.stem, run_case(path)


def run_case(path: Path) -> Figures:
    """Return the figures of one case."""
    return _comparison(path)(path)


def _comparison(path: Path) -> Callable[[Path], Figures] | None:
    comparisons = {
        "centernet_targets_": compare_targets,
        "centernet_proposals_": compare_proposals,
        "centernet_head": compare_head,
        "cascade_": compare_cascade,
        "fpn_p3_p7": compare_pyramid,
        "swin_": compare_swin,
        "recipes": compare_schedules,
        "lvis_v1_clip": compare_embeddings,
    }
    return next((compare for name, compare in comparisons.items() if path.name.startswith(name)), None)


def compare_targets(path: Path) -> Figures:
    """Targets, losses and gradients of the first stage."""
    arrays = _read(path)
    locations = make_locations(arrays["level_hw"].tolist(), STRIDES, arrays["logits"])
    images = arrays["boxes"].split(arrays["boxes_per_image"].tolist())
    shape = (len(images), len(locations.centers))
    rows = torch.arange(shape[0] * shape[1]).view(*shape)  # ours: image by image
    counts = [height * width for height, width in locations.sizes_hw]
    theirs = torch.cat([level.flatten() for level in rows.split(counts, dim=1)])  # level by level
    ours = theirs.argsort()
    logits, ltrb = arrays["logits"][ours], arrays["regression_predicted"][ours]
    logits, ltrb = logits.requires_grad_(), ltrb.requires_grad_()
    targets = [{"boxes": boxes} for boxes in images]
    losses = _proposals(Number(1, 1)).losses(logits.view(shape), ltrb.view(*shape, 4), locations, targets)
    sum(losses.values()).backward()

    wanted = [center_targets(boxes, locations) for boxes in images]
    positives = torch.cat([own.positives + number * shape[1] for number, own in enumerate(wanted)])
    heat = torch.cat([own.heat for own in wanted])[theirs]
    has_box = torch.cat([own.has_box for own in wanted])[theirs]
    boxes = torch.cat([own.ltrb for own in wanted])[theirs][has_box]
    names = {"agn_pos": "center_object", "agn_neg": "center_background", "loc": "center_box"}
    return {
        "heat": (_difference(heat, arrays["heatmap"]), "scores"),
        "positives": (_difference(ours[positives].sort()[0], arrays["positives"].sort()[0]), "targets"),
        "box_rows": (_difference(torch.where(has_box)[0], arrays["regression_rows"]), "targets"),
        "boxes": (_difference(boxes, arrays["regression"]), "targets"),
        **{
            name: (_relative(losses[own], arrays[f"loss_{name}"]), "losses_relative")
            for name, own in names.items()
        },
        "grad_logits": (_difference(logits.grad[theirs], arrays["grad_logits"]), "gradients"),
        "grad_boxes": (_difference(ltrb.grad[theirs], arrays["grad_regression"]), "gradients"),
    }


def compare_proposals(path: Path) -> Figures:
    """Boxes and scores that the first stage proposes."""
    arrays = _read(path)
    levels = range(len(arrays["level_hw"]))
    logits = torch.cat([arrays[f"heatmap_logits_{level}"].flatten(1) for level in levels], dim=1)
    ltrb = torch.cat([arrays[f"regression_{level}"].flatten(2).mT for level in levels], dim=1)
    locations = make_locations(arrays["level_hw"].tolist(), STRIDES, logits)
    number = Number(int(arrays["pre_nms_topk"]), int(arrays["post_nms_topk"]))
    rpn = _proposals(number, nms_thresh=float(arrays["nms_threshold"]))
    figures: Figures = {}
    for image, found in enumerate(zip(*rpn.propose(logits, ltrb, locations), strict=True)):
        boxes, scores = found
        figures[f"boxes_{image}"] = (_difference(boxes, arrays[f"boxes_{image}"]), "boxes_px")
        figures[f"scores_{image}"] = (_difference(scores, arrays[f"scores_{image}"]), "scores")
    return figures


def compare_head(path: Path) -> Figures:
    """Heat and boxes of the head of the first stage, from given weights."""
    arrays = _read(path)
    head = CenterHead(arrays["features_0"].shape[1], len(STRIDES))
    head.load_state_dict(_weights(arrays, "proposal_generator.centernet_head.", "rpn.head."))
    levels = range(len(STRIDES))
    heat, boxes = head([arrays[f"features_{level}"] for level in levels])
    return {
        "heat": (max(_difference(heat[i], arrays[f"heatmap_logits_{i}"]) for i in levels), "features"),
        "boxes": (max(_difference(boxes[i], arrays[f"regression_{i}"]) for i in levels), "features"),
    }


def compare_cascade(path: Path) -> Figures:
    """Losses, gradients and detections of the second stage, from given weights."""
    arrays = _read(path)
    weights = _weights(arrays, "roi_heads.", "roi_heads.")
    heads = _cascade(arrays, weights, all_classes=path.stem.endswith("_all"))
    heads.load_state_dict(weights, strict=False)
    assert set(weights) == set(heads.state_dict())
    features = {level: arrays[f"features_{level}"].requires_grad_() for level in ("p3", "p4", "p5")}
    size_hw = tuple(arrays["image_hw"].tolist())
    images = range(len(arrays["features_p3"]))
    proposals = Proposals(
        [arrays[f"proposals_{image}"] for image in images],
        [arrays[f"objectness_{image}"] for image in images],
    )
    targets = [_target(arrays, image, size_hw) for image in images]
    _, losses = heads(features, proposals, [size_hw] * len(images), targets)
    sum(losses.values()).backward()
    names = {f"class_{stage}": f"loss_cls_stage{stage}" for stage in range(3)}
    names |= {f"box_{stage}": f"loss_box_reg_stage{stage}" for stage in range(3)} | {"mask": "loss_mask"}
    figures: Figures = {
        name: (_relative(losses[name], arrays[f"loss::{theirs}"]), "losses_relative")
        for name, theirs in names.items()
    }
    for level, values in features.items():
        figures[f"grad_{level}"] = (_difference(values.grad, arrays[f"grad_features_{level}"]), "gradients")
    with torch.no_grad():
        found, _ = heads.eval()(features, proposals, [size_hw] * len(images))
    for image in images:
        figures |= _compare_detections(found[image], arrays, image)
    return figures


def compare_pyramid(path: Path) -> Figures:
    """The levels of a pyramid, from given weights."""
    arrays = _read(path)
    levels = [arrays[f"in_{name}"] for name in "abc"]
    channels = arrays["out_p3"].shape[1]
    fpn = FeaturePyramidNetwork(
        [level.shape[1] for level in levels], channels, extra_blocks=LastLevelP6P7(channels, channels)
    )
    fpn.load_state_dict(_weights(arrays, "backbone.", "backbone.fpn."))
    found = fpn({str(number): level for number, level in enumerate(levels)}).values()
    return {
        f"p{number}": (_difference(level, arrays[f"out_p{number}"]), "features")
        for number, level in enumerate(found, start=3)
    }


def compare_swin(path: Path) -> Figures:
    """The outputs of a Swin transformer, from given weights."""
    arrays = _read(path)
    state = name_swins(_state(arrays))
    body = SwinFPN(
        weights="none", embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=7
    ).body.eval()
    body.load_state_dict(state)
    with torch.no_grad():
        found = body(arrays["image"]).feature_maps
    return {
        f"stage{number}": (_difference(level, arrays[f"out_swin{number}"]), "features")
        for number, level in enumerate(found, start=1)
    }


def compare_schedules(path: Path) -> Figures:
    """The learning rates of the recipes."""
    figures: Figures = {}
    for name, recipe in json.loads(path.read_text())["warmup_cosine"].items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = warmup_cosine(
            optimizer,
            total_steps=recipe["max_steps"],
            warmup_steps=recipe["warmup_steps"],
            warmup_start=recipe["warmup_factor"],
            over="whole",
        )
        (factor,) = schedule.lr_lambdas
        differences = [abs(factor(int(step)) - wanted) for step, wanted in recipe["factor_at_step"].items()]
        figures[name] = (max(differences), "scores")
    return figures


def compare_embeddings(path: Path) -> Figures:
    """The text embeddings of the 1,203 classes of LVIS are read, and have the length 1."""
    lengths = read_text_embeddings(path, num_classes=1203).norm(dim=1)
    return {"length": (_difference(lengths, torch.ones(1203)), "scores")}


def _proposals(number: Number, nms_thresh: float = 0.9) -> CenterProposals:
    return CenterProposals(
        head=CenterHead(32, len(STRIDES)),
        strides=STRIDES,
        synthetic_losses=SyntheticLosses(),
        num_training=number,
        num_evaluation=number,
        nms_thresh=nms_thresh,
    )


def _cascade(arrays: Arrays, weights: Arrays, *, all_classes: bool) -> CascadeHeads:
    """Build the heads of a case; where only the classes present are looked at, no other has an image."""
    counts = arrays["image_counts"].tolist()
    categories = [
        Category(number + 1, f"class {number}", image_count=count if all_classes else 0)
        for number, count in enumerate(counts)
    ]
    loss = FederatedLoss(
        num_classes=len(counts), categories=lambda: Categories(categories), num_sampled=len(counts)
    )
    width, channels = len(weights["box_head.0.fc6.weight"]), arrays["features_p3"].shape[1]
    embeddings = weights.get("box_predictor.0.classifier.embeddings")
    hidden = len(weights["mask_head.0.0.weight"])
    pool = {"strides": STRIDES[:3], "sampling_ratio": 0}
    return CascadeHeads(
        box_heads=[TwoMLPHead(channels * 7 * 7, width) for _ in range(3)],
        box_predictors=[StagePredictor(width, loss, embeddings) for _ in range(3)],
        classification_loss=loss,
        synthetic_losses=SyntheticLosses(),
        box_roi_pool=RegionPool(7, **pool),
        batch_size_per_image=512,
        positive_fraction=0.25,
        score_thresh=0.02,
        nms_thresh=0.5,
        detections_per_img=300,
        mask_roi_pool=RegionPool(14, **pool),
        mask_head=MaskRCNNHeads(channels, (hidden,) * 4, dilation=1),
        mask_predictor=MaskPredictor(hidden, hidden, 1),
    )


def _target(arrays: Arrays, image: int, size_hw: tuple[int, int]) -> dict[str, Tensor]:
    labels = arrays[f"gt_labels_{image}"]
    shape = (len(labels), *size_hw)
    masks = np.unpackbits(arrays[f"gt_masks_{image}"].numpy(), count=int(np.prod(shape)))
    masks = torch.from_numpy(masks.reshape(shape))
    return {"boxes": arrays[f"gt_boxes_{image}"], "labels": labels, "masks": masks}


def _compare_detections(found: dict[str, Tensor], arrays: Arrays, image: int) -> Figures:
    """Compare detections by falling score; among equal scores the one of the same label and box."""
    boxes, scores, labels = (arrays[f"pred_{key}_{image}"] for key in ("boxes", "scores", "labels"))
    masks = arrays[f"pred_masks_{image}"].float()
    if len(boxes) != len(found["boxes"]):
        return {f"detections_{image}": (float("inf"), "boxes_px")}
    own = []
    for number in range(len(boxes)):
        equal = (found["scores"] - scores[number]).abs() <= TOLERANCES["scores"]
        equal &= found["labels"] == labels[number]
        distances = (found["boxes"] - boxes[number]).abs().amax(dim=1).masked_fill(~equal, torch.inf)
        distances[own] = torch.inf
        own.append(int(distances.argmin()))
    return {
        f"labels_{image}": (_difference(found["labels"][own], labels), "targets"),
        f"boxes_{image}": (_difference(found["boxes"][own], boxes), "boxes_px"),
        f"scores_{image}": (_difference(found["scores"][own], scores), "scores"),
        f"masks_{image}": (_difference(found["roi_masks"][own[: len(masks)]], masks), "masks"),
    }


def _read(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


def _state(arrays: Arrays) -> Arrays:
    return {key.removeprefix("state::"): value for key, value in arrays.items() if key.startswith("state::")}


def _weights(arrays: Arrays, theirs: str, ours: str) -> dict[str, Any]:
    """Return the weights of a part: ``theirs`` in the published detector, ``ours`` in mflight's."""
    named = name_detics({theirs + key: value for key, value in _state(arrays).items()})
    return {key.removeprefix(ours): value for key, value in named.items()}


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float((one.detach() - other).abs().max()) if one.numel() else 0.0


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one.detach() - other).abs() / other.abs().clamp(min=1e-12))


if __name__ == "__main__":
    sys.exit(main())
