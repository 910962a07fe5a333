"""Mask R-CNN from torchvision's parts, with the settings that LVIS needs."""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, validate_call
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import MultiScaleRoIAlign

from mflight.detection.detector import DetectorTransform
from mflight.detection.heads import InstanceHeads
from mflight.detection.loss_weights import LOSS_NAMES, LossName, SyntheticLosses
from mflight.detection.losses import ClassificationLoss, SoftmaxLoss
from mflight.detection.predictors import BoxPredictor, MaskPredictor
from mflight.detection.proposals import FullPrecisionAnchors, ProposalHead, ProposalNetwork
from mflight.detection.starting_weights import load_detector

_ROI_LEVELS = [
    "0",
    "1",
    "2",
    "3",
]  # the coarsest level of torchvision's pyramid proposes, but is not pooled from
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@validate_call(config=ConfigDict(arbitrary_types_allowed=True))
def build_mask_rcnn(
    *,
    backbone: nn.Module,
    num_classes: Count,
    weights: Path | None = None,
    min_size: Count | None = 800,
    max_size: Count = 1333,
    image_mean: tuple[float, float, float] = _IMAGENET_MEAN,
    image_std: tuple[float, float, float] = _IMAGENET_STD,
    anchor_sizes_px: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,)),
    anchor_aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    rpn_pre_nms_top_n_train: Count = 2000,
    rpn_pre_nms_top_n_test: Count = 1000,
    rpn_post_nms_top_n_train: Count = 1000,
    rpn_post_nms_top_n_test: Count = 1000,
    rpn_batch_size_per_image: Count = 256,
    box_batch_size_per_image: Count = 512,
    box_positive_fraction: Share = 0.25,
    box_head_channels: Count = 1024,
    box_score_thresh: Share = 1e-4,
    box_nms_thresh: Share = 0.5,
    box_detections_per_img: Count = 300,
    mask_head_channels: tuple[int, ...] = (256, 256, 256, 256),
    roi_sampling_ratio: Count = 2,
    classification_loss: ClassificationLoss | None = None,
    cosine_temperature: Annotated[float, Field(gt=0.0)] | None = None,
    class_agnostic_boxes: bool = False,
    class_agnostic_masks: bool = False,
    ignore_overlap: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5,
    synthetic_loss_weight: Annotated[float, Field(ge=0.0)] = 1.0,
    synthetic_losses: tuple[LossName, ...] = LOSS_NAMES,
) -> GeneralizedRCNN:
    """Build a Mask R-CNN over a feature pyramid; the defaults are detectron2's for LVIS v1.

    In training ``model(images, targets)`` returns torchvision's five losses. In evaluation
    ``model(images)`` returns for each image ``boxes`` float32[N, 4] (xyxy px of the image as given),
    ``labels`` int64[N] in ``1..C``, ``scores`` float32[N] falling and ``roi_masks`` float32[N, 1, M, M],
    the probability of the object inside its
    box: :func:`mflight.detection.results.predictions_to_rle` pastes those one by one, where torchvision would
    hold N x H x W floats (1.2 GB an image for 300 detections at 800 x 1333). Images are float32[3, H, W] in
    [0, 1].

    Args:
        backbone: returns a dictionary of levels, finest first, and has ``out_channels``.
        num_classes: ``C``, without the background; torchvision's own number is one more.
        weights: a file that all of it starts from, such as torchvision's Mask R-CNN trained on COCO: heads of
            another number of classes are left out and named. ``None``: the backbone's own start.
        min_size: shorter side in evaluation, in pixels; ``None`` leaves the images as they are.
            In training the images are never resized here: the train transforms have done it.
        max_size: cap on the longer side in evaluation, in pixels.
        image_mean: subtracted from each channel.
        image_std: each channel is divided by it.
        anchor_sizes_px: for each level of the backbone, the sides of its anchors.
        anchor_aspect_ratios: height over width of the anchors.
        rpn_pre_nms_top_n_train: proposals a level before suppression, in training.
        rpn_pre_nms_top_n_test: the same in evaluation.
        rpn_post_nms_top_n_train: proposals an image after suppression, in training.
        rpn_post_nms_top_n_test: the same in evaluation.
        rpn_batch_size_per_image: anchors an image that the proposal loss samples.
        box_batch_size_per_image: regions an image that the box and class losses sample.
        box_positive_fraction: largest share of them that lies on objects.
        box_head_channels: width of the two hidden layers of the box head.
        box_score_thresh: detections at or below it are dropped. torchvision's 0.05 would erase most rare
            classes.
        box_nms_thresh: box IoU above which the weaker of two detections of a class is dropped.
        box_detections_per_img: the best of them, across classes, are kept.
        mask_head_channels: channels of the convolutions of the mask head.
        roi_sampling_ratio: points a side at which each cell of a region is sampled; 1 is enough where regions
            are small, and four times as fast.
        classification_loss: of the regions, for the same ``num_classes``; softmax by default.
        cosine_temperature: largest logit of a normalised-cosine classifier, 20 in the papers; ``None`` is a
            plain linear one.
        class_agnostic_boxes: one box a region, shared by all classes.
        class_agnostic_masks: one mask a region, shared by all classes.
        ignore_overlap: an anchor or proposal is left out of the losses when one of the target's
            ``ignore_boxes`` covers this share of its area and it matches no instance.
        synthetic_loss_weight: weight of synthetic images in the losses' gradient; a real image's is 1.
        synthetic_losses: those by which synthetic images are learnt from; the others take nothing from them.

    Returns:
        The model, on the CPU.

    Raises:
        ValueError: if ``classification_loss`` is for another number of classes.

    Source:
        He et al., "Mask R-CNN", arXiv:1703.06870; test settings of detectron2's LVISv1-InstanceSegmentation
        configs.
    """
    channels = backbone.out_channels
    num_channels = num_classes + 1  # of per-class boxes and masks: the background is class 0
    loss = classification_loss or SoftmaxLoss(num_classes=num_classes)
    if loss.num_classes != num_classes:
        raise ValueError(
            f"model.classification_loss.num_classes must be model.num_classes={num_classes}, "
            f"got {loss.num_classes}"
        )
    learnt = SyntheticLosses(synthetic_loss_weight, synthetic_losses)
    anchors = FullPrecisionAnchors(anchor_sizes_px, (anchor_aspect_ratios,) * len(anchor_sizes_px))
    rpn = ProposalNetwork(
        ignore_overlap=ignore_overlap,
        synthetic_losses=learnt,
        anchor_generator=anchors,
        head=ProposalHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=rpn_batch_size_per_image,
        positive_fraction=0.5,
        pre_nms_top_n={"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
        post_nms_top_n={"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
        nms_thresh=0.7,
    )
    roi_heads = InstanceHeads(
        class_agnostic_boxes=class_agnostic_boxes,
        class_agnostic_masks=class_agnostic_masks,
        classification_loss=loss,
        ignore_overlap=ignore_overlap,
        synthetic_losses=learnt,
        box_roi_pool=MultiScaleRoIAlign(_ROI_LEVELS, output_size=7, sampling_ratio=roi_sampling_ratio),
        box_head=TwoMLPHead(channels * 7 * 7, box_head_channels),
        box_predictor=BoxPredictor(
            box_head_channels,
            loss.num_logits,
            1 if class_agnostic_boxes else num_channels,
            cosine_temperature=cosine_temperature,
            initial_bias=loss.initial_bias(),
        ),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=box_batch_size_per_image,
        positive_fraction=box_positive_fraction,
        bbox_reg_weights=None,
        score_thresh=box_score_thresh,
        nms_thresh=box_nms_thresh,
        detections_per_img=box_detections_per_img,
        mask_roi_pool=MultiScaleRoIAlign(_ROI_LEVELS, output_size=14, sampling_ratio=roi_sampling_ratio),
        mask_head=MaskRCNNHeads(channels, mask_head_channels, dilation=1),
        mask_predictor=MaskPredictor(
            mask_head_channels[-1], mask_head_channels[-1], 1 if class_agnostic_masks else num_channels
        ),
    )
    model = GeneralizedRCNN(
        backbone, rpn, roi_heads, DetectorTransform(min_size, max_size, image_mean, image_std)
    )
    if weights is not None:
        load_detector(model, weights)
    return model
