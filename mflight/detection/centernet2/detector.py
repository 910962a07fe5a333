"""CenterNet2 with Detic's settings for LVIS: likely centres of objects, then a cascade of classifiers."""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, validate_call
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from mflight.detection.centernet2.cascade import NUM_STAGES, CascadeHeads, RegionPool
from mflight.detection.centernet2.predictors import StagePredictor
from mflight.detection.centernet2.proposals import CenterHead, CenterProposals, Number
from mflight.detection.detector import DetectorTransform
from mflight.detection.loss_weights import LOSS_NAMES, LossName, SyntheticLosses
from mflight.detection.losses import ClassificationLoss
from mflight.detection.predictors import MaskPredictor
from mflight.detection.starting_weights import load_detector
from mflight.detection.vocabulary import read_text_embeddings

_MASK_STD = 0.001

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@validate_call(config=ConfigDict(arbitrary_types_allowed=True))
def build_centernet2(
    *,
    backbone: nn.Module,
    num_classes: Count,
    classification_loss: ClassificationLoss,
    text_embeddings: Path | None = None,
    weights: Path | None = None,
    min_size: Count | None = 800,
    max_size: Count = 1333,
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    strides: tuple[Count, ...] = (8, 16, 32, 64, 128),
    num_roi_levels: Count = 3,
    num_proposals_train: tuple[Count, Count] = (4000, 2000),
    num_proposals_test: tuple[Count, Count] = (1000, 256),
    box_batch_size_per_image: Count = 512,
    box_positive_fraction: Share = 0.25,
    box_head_channels: Count = 1024,
    box_score_thresh: Share = 0.02,
    box_nms_thresh: Share = 0.5,
    box_detections_per_img: Count = 300,
    mask_head_channels: tuple[int, ...] = (256, 256, 256, 256),
    roi_sampling_ratio: Annotated[int, Field(ge=0)] = 0,
    ignore_overlap: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5,
    synthetic_loss_weight: Annotated[float, Field(ge=0.0)] = 1.0,
    synthetic_losses: tuple[LossName, ...] = LOSS_NAMES,
) -> GeneralizedRCNN:
    """Build a CenterNet2; the defaults are those of Detic's box-supervised baselines on LVIS v1.

    It keeps :class:`mflight.detection.detector.Detector`. In training its losses are ``center_object``,
    ``center_background``, ``center_box``; ``class_0`` to ``class_2``, ``box_0`` to ``box_2`` of the three
    stages; and ``mask``.

    Args:
        backbone: returns a dictionary of levels, finest first, and has ``out_channels``, a multiple of 32.
        num_classes: ``C``, without the background.
        classification_loss: of the regions, for the same ``num_classes``; the published one is federated.
        text_embeddings: a ``.npy`` of float[C, D], the classes in the order of their labels: the classifier
            then compares regions with texts; ``None`` for a linear one.
        weights: a file that all of it starts from, such as Detic's ``.pth``: class layers of another number
            of classes are left out and named. ``None``: the backbone's own start.
        min_size: shorter side in evaluation, in pixels; ``None`` leaves the images as they are.
            In training the images are never resized here: the train transforms have done it.
        max_size: cap on the longer side in evaluation, in pixels.
        image_mean: subtracted from each channel.
        image_std: each channel is divided by it.
        strides: px of the levels of the backbone, powers of two.
        num_roi_levels: the first of them, from which regions are pooled.
        num_proposals_train: in training, at most so many a level before suppression and an image after it.
        num_proposals_test: the same in evaluation.
        box_batch_size_per_image: regions an image that the first stage of the cascade samples.
        box_positive_fraction: largest share of them that lies on objects.
        box_head_channels: width of the two hidden layers of each stage.
        box_score_thresh: detections at or below it are dropped.
        box_nms_thresh: box IoU above which the weaker of two detections of a class is dropped.
        box_detections_per_img: the best of them, across classes, are kept.
        mask_head_channels: channels of the convolutions of the mask head.
        roi_sampling_ratio: points a side at which each cell of a region is sampled; 0: as many as there are
            features.
        ignore_overlap: a region is left out of the losses of a stage when one of the target's
            ``ignore_boxes`` covers this share of its area and it matches no instance.
        synthetic_loss_weight: weight of synthetic images in the losses' gradient; a real image's is 1.
        synthetic_losses: those by which synthetic images are learnt from; the others take nothing from them.

    Returns:
        The model, on the CPU.

    Raises:
        ValueError: if ``classification_loss`` is for another number of classes, or has other logits than one
            a class beside ``text_embeddings``.

    Source:
        Zhou et al., "Probabilistic two-stage detection", arXiv:2103.07461; Detic, arXiv:2201.02605.
    """
    if classification_loss.num_classes != num_classes:
        raise ValueError(
            f"model.classification_loss.num_classes must be model.num_classes={num_classes}, "
            f"got {classification_loss.num_classes}"
        )
    channels = backbone.out_channels
    learnt = SyntheticLosses(synthetic_loss_weight, synthetic_losses)
    embeddings = _embeddings(text_embeddings, classification_loss)
    pool = {"strides": strides[:num_roi_levels], "sampling_ratio": roi_sampling_ratio}
    rpn = CenterProposals(
        head=CenterHead(channels, len(strides)),
        strides=strides,
        synthetic_losses=learnt,
        num_training=Number(*num_proposals_train),
        num_evaluation=Number(*num_proposals_test),
    )
    roi_heads = CascadeHeads(
        classification_loss=classification_loss,
        synthetic_losses=learnt,
        ignore_overlap=ignore_overlap,
        box_roi_pool=RegionPool(7, **pool),
        box_heads=[_box_head(channels * 7 * 7, box_head_channels) for _ in range(NUM_STAGES)],
        box_predictors=[
            StagePredictor(box_head_channels, classification_loss, embeddings) for _ in range(NUM_STAGES)
        ],
        batch_size_per_image=box_batch_size_per_image,
        positive_fraction=box_positive_fraction,
        score_thresh=box_score_thresh,
        nms_thresh=box_nms_thresh,
        detections_per_img=box_detections_per_img,
        mask_roi_pool=RegionPool(14, **pool),
        mask_head=MaskRCNNHeads(channels, mask_head_channels, dilation=1),
        mask_predictor=_mask_predictor(mask_head_channels[-1]),
    )
    transform = DetectorTransform(min_size, max_size, image_mean, image_std)
    model = GeneralizedRCNN(backbone, rpn, roi_heads, transform)
    if weights is not None:
        load_detector(model, weights)
    return model


def _embeddings(file: Path | None, loss: ClassificationLoss) -> Tensor | None:
    if file is None:
        return None
    if loss.num_logits != loss.num_classes:
        raise ValueError(
            f"model.text_embeddings={file} needs a loss of one logit a class, "
            f"model/classification_loss=federated, got {type(loss).__name__}"
        )
    return read_text_embeddings(file, num_classes=loss.num_classes)


def _box_head(in_channels: int, channels: int) -> nn.Module:
    head = TwoMLPHead(in_channels, channels)
    for layer in (head.fc6, head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    return head


def _mask_predictor(channels: int) -> nn.Module:
    predictor = MaskPredictor(channels, channels, 1)
    nn.init.normal_(predictor.mask_fcn_logits.weight, std=_MASK_STD)
    return predictor
