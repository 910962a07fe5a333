import pytest
import torch
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import box_iou

from mflight.detection.backbones import MiniFPN, build_resnet_fpn
from mflight.detection.heads import _first_of_each
from mflight.detection.mask_rcnn import build_mask_rcnn
from mflight.detection.results import predictions_to_rle
from mflight.functional.masks import rle_decode

LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
SIDE = 64


def build_tiny(**changes):
    torch.manual_seed(0)
    settings = {
        "backbone": MiniFPN(stage_channels=(16, 32, 32, 32), out_channels=32),
        "num_classes": 3,
        "min_size": None,
        "anchor_sizes_px": ((12,), (24,), (48,), (96,)),
        "rpn_pre_nms_top_n_train": 100,
        "rpn_pre_nms_top_n_test": 100,
        "rpn_post_nms_top_n_train": 50,
        "rpn_post_nms_top_n_test": 20,
        "box_batch_size_per_image": 32,
        "box_head_channels": 64,
        "mask_head_channels": (16,),
    }
    return build_mask_rcnn(**{**settings, **changes})


def draw_shapes():
    """Two images with a bright square (1), a dark disc (2) and a wide bar (3), and one without objects."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    square = (rows >= 8) & (rows < 28) & (columns >= 6) & (columns < 26)
    disc = (rows - 44) ** 2 + (columns - 44) ** 2 < 13**2
    bar = (rows >= 14) & (rows < 22) & (columns >= 30) & (columns < 60)
    images, targets = [], []
    for labels, masks in (((1, 2), (square, disc)), ((3, 2), (bar, disc)), ((), ())):
        image = torch.full((3, SIDE, SIDE), 0.5)
        for label, mask in zip(labels, masks, strict=True):
            image[:, mask] = torch.tensor([[1.0, 0.9, 0.2], [0.0, 0.1, 0.4], [0.9, 0.2, 0.9]])[label - 1][
                :, None
            ]
        boxes = [
            [
                m.any(0).nonzero()[0],
                m.any(1).nonzero()[0],
                m.any(0).nonzero()[-1] + 1,
                m.any(1).nonzero()[-1] + 1,
            ]
            for m in masks
        ]
        images.append(image)
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "masks": torch.stack(masks).to(torch.uint8)
                if masks
                else torch.zeros(0, SIDE, SIDE, dtype=torch.uint8),
            }
        )
    return images, targets


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_losses_and_predictions_keep_their_contract(boxes, masks):
    model = build_tiny(class_agnostic_boxes=boxes, class_agnostic_masks=masks, box_detections_per_img=30)
    images, targets = draw_shapes()
    losses = model(images, targets)
    assert set(losses) == LOSSES and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    predictions = model.eval()(images)
    for prediction in predictions:
        count = len(prediction["labels"])
        assert 0 < count <= 30
        assert prediction["boxes"].shape == (count, 4) and prediction["roi_masks"].shape == (count, 1, 28, 28)
        assert prediction["labels"].min() >= 1 and prediction["labels"].max() <= 3
        assert (prediction["scores"].diff() <= 0).all() and prediction["scores"].min() > 1e-4
        assert prediction["boxes"].min() >= 0 and prediction["boxes"].max() <= SIDE


def test_an_image_without_objects_can_be_trained_on_alone():
    images, targets = draw_shapes()
    losses = build_tiny()(images[2:], targets[2:])
    assert losses["loss_mask"] == 0 and losses["loss_box_reg"] == 0


@pytest.mark.parametrize("shared", [False, True])
def test_images_without_any_proposal_have_no_detection(shared):
    detector = build_tiny(class_agnostic_boxes=shared, class_agnostic_masks=shared).eval()
    detector.rpn.forward = lambda images, features, targets=None: ([torch.zeros(0, 4)] * 2, {})
    for found in detector([torch.zeros(3, SIDE, SIDE)] * 2):
        assert found["boxes"].shape == (0, 4) and len(found["roi_masks"]) == len(found["scores"]) == 0


def test_shared_boxes_and_masks_leave_one_channel():
    per_class, shared = build_tiny(), build_tiny(class_agnostic_boxes=True, class_agnostic_masks=True)
    channels = [
        (
            m.roi_heads.box_predictor.bbox_pred.out_features,
            m.roi_heads.mask_predictor.mask_fcn_logits.out_channels,
        )
        for m in (per_class, shared)
    ]
    assert channels == [(4 * 4, 4), (4, 1)]
    assert shared.roi_heads.box_predictor.cls_score.out_features == 4  # three classes and the background


def test_detections_of_one_region_share_its_mask():
    model = build_tiny(class_agnostic_boxes=True, class_agnostic_masks=True).eval()
    prediction = model(draw_shapes()[0])[0]
    for box in prediction["boxes"].unique(dim=0):
        same = (prediction["boxes"] == box).all(dim=1)
        assert len(prediction["roi_masks"][same].flatten(1).unique(dim=0)) == 1
    assert len(prediction["boxes"].unique(dim=0)) < len(prediction["boxes"])


def test_mask_sharing_changes_no_number():
    model = build_tiny(class_agnostic_boxes=True, class_agnostic_masks=True).eval()
    images, _ = draw_shapes()
    shared = model(images)[0]
    model.roi_heads.class_agnostic_boxes = False  # each detection now draws its own mask
    model.roi_heads.box_predictor.bbox_pred = _Repeated(model.roi_heads.box_predictor.bbox_pred, 4)
    alone = model(images)[0]
    assert torch.equal(shared["labels"], alone["labels"]) and torch.allclose(shared["boxes"], alone["boxes"])
    assert torch.allclose(shared["roi_masks"], alone["roi_masks"], atol=1e-6)


class _Repeated(torch.nn.Module):
    def __init__(self, linear, times):
        super().__init__()
        self.linear, self.times = linear, times

    def forward(self, features):
        return self.linear(features).repeat(1, self.times)


@pytest.mark.parametrize("shared", [False, True])
def test_box_and_class_losses_equal_torchvisions(shared):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 3, 1, 0, 2, 1])
    offsets = torch.randn(6, 4, generator=generator)
    regression = torch.randn(6, 4 if shared else 16, generator=generator)
    heads = build_tiny(class_agnostic_boxes=shared).roi_heads
    expected = fastrcnn_loss(logits, regression.repeat(1, 4) if shared else regression, [labels], [offsets])
    assert torch.allclose(heads._box_loss(regression, offsets, labels), expected[1])
    assert torch.allclose(heads.classification_loss(logits, labels), expected[0])


def test_the_mask_loss_takes_the_matched_instance_cut_exactly_to_its_region():
    heads = build_tiny(class_agnostic_masks=True).roi_heads
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[1, 2:6, 2:4] = 1  # the left half of the region 2 .. 6
    targets = [{"masks": masks, "labels": torch.tensor([3, 2])}]
    region, matched = [torch.tensor([[2.0, 2.0, 6.0, 6.0]])], [torch.tensor([1])]
    logits = torch.full((1, 4, 4), -20.0)
    logits[..., :2] = 20.0
    assert heads._mask_loss(logits, region, matched, targets).item() < 1e-6
    # 20 a cell where wrong, which is everywhere
    assert heads._mask_loss(logits.flip(2), region, matched, targets).item() == pytest.approx(20.0)


def test_one_position_stands_for_each_distinct_value():
    values = torch.tensor([7, 2, 7, 5, 2])
    first, index = _first_of_each(values)
    assert torch.equal(values[first][index], values) and len(first) == 3
    first, index = _first_of_each(values[:0])
    assert len(first) == len(index) == 0


def test_predicted_boxes_are_in_pixels_of_the_image_as_given():
    model = build_tiny(min_size=32, max_size=64).eval()
    prediction = model([torch.rand(3, 128, 160)])[0]
    assert 64 < prediction["boxes"].max() <= 160
    rles = predictions_to_rle(prediction, (128, 160))
    assert rle_decode(rles[0]).shape == (128, 160)


@pytest.mark.slow
def test_it_learns_a_few_shapes_by_heart():
    model = build_tiny(class_agnostic_boxes=True, class_agnostic_masks=True)
    images, targets = draw_shapes()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[60], gamma=0.2)
    for _ in range(80):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for prediction, target in zip(model.eval()(images[:2]), targets, strict=False):
        rles = predictions_to_rle(prediction, (SIDE, SIDE))
        for label, box, mask in zip(target["labels"], target["boxes"], target["masks"], strict=True):
            best = int((prediction["labels"] == label).nonzero()[0])
            assert prediction["scores"][best] > 0.5
            assert box_iou(prediction["boxes"][best : best + 1], box[None]).item() > 0.7
            found = torch.from_numpy(rle_decode(rles[best]))
            assert (found & (mask == 1)).sum() / (found | (mask == 1)).sum() > 0.7


@pytest.mark.parametrize("normalization", ["group", "batch"])
def test_the_mini_pyramid_has_four_levels(normalization):
    levels = MiniFPN(normalization=normalization, blocks_per_stage=2)(torch.rand(2, 3, 128, 96))
    assert {name: tuple(level.shape[2:]) for name, level in levels.items()} == {
        "0": (32, 24),
        "1": (16, 12),
        "2": (8, 6),
        "3": (4, 3),
    }
    assert all(level.shape[:2] == (2, 64) for level in levels.values())


def test_a_resnet_starts_from_a_file_and_freezes_what_it_should(tmp_path):
    plain = build_resnet_fpn(weights="none")
    assert all(p.requires_grad for p in plain.parameters())
    state = {name: value + 1 for name, value in plain.body.state_dict().items()}
    torch.save(state, tmp_path / "resnet.pth")
    loaded = build_resnet_fpn(weights=str(tmp_path / "resnet.pth"), trainable_layers=3)
    assert torch.equal(loaded.body.conv1.weight, plain.body.conv1.weight + 1)
    trained = {name.split(".")[0] for name, p in loaded.body.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}


def test_faulty_weights_and_settings_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="got 'imagnet'"):
        build_resnet_fpn(weights="imagnet")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "half.pth")
    with pytest.raises(
        ValueError, match=r"half.pth must hold the state dict of a ResNet-50, but it lacks \['bn1"
    ):
        build_resnet_fpn(weights=str(tmp_path / "half.pth"))
    with pytest.raises(ValueError, match="multiples of 16, got 20"):
        MiniFPN(stage_channels=(20, 32, 32, 32))
    with pytest.raises(ValueError, match="num_classes"):
        build_tiny(num_classes=0)
    with pytest.raises(ValueError, match="box_score_thresh"):
        build_tiny(box_score_thresh=2.0)


def test_weights_that_cannot_be_fetched_give_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(
        RuntimeError, match=r"resnet50-0676ba61.pth, which could not be fetched .*weights='none'"
    ):
        build_resnet_fpn(weights="imagenet")
