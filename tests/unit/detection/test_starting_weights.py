"""Public layouts of weights, made here with random numbers."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from mflight.detection.backbones import MiniFPN, build_resnet_fpn
from mflight.detection.mask_rcnn import build_mask_rcnn
from mflight.detection.starting_weights import read_weights

CAFFE_LAYERS = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}


@pytest.fixture(scope="module")
def resnet():
    """A frozen ResNet-50 whose normalisation does something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet50(weights=None, norm_layer=FrozenBatchNorm2d).eval()
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.weight.uniform_(0.5, 1.0)
                module.bias.uniform_(-0.1, 0.1)
    return model


@pytest.fixture(scope="module")
def coco():
    """The state dict that torchvision publishes: its normalisation is frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    return {key: value for key, value in model.state_dict().items() if "num_batches" not in key}


def caffe_name(key):
    """torchvision's name of a weight of a ResNet in Caffe2's words."""
    module, _, kind = key.rpartition(".")
    letter = {"weight": "w", "bias": "b"}[kind]
    if module in ("conv1", "bn1"):
        return f"conv1_{letter}" if module == "conv1" else f"res_conv1_bn_{'s' if letter == 'w' else 'b'}"
    layer, block, name, *rest = module.split(".")
    is_norm = name.startswith("bn") or rest == ["1"]
    branch = "branch1" if name == "downsample" else CAFFE_LAYERS[name.replace("bn", "conv")]
    place = f"res{int(layer[-1]) + 1}_{block}_{branch}"
    return f"{place}_bn_{'s' if letter == 'w' else 'b'}" if is_norm else f"{place}_{letter}"


def save_caffe(resnet, path, **more):
    """``R-50.pkl`` as Python 2 and an old numpy wrote it."""
    arrays = {
        caffe_name(key): value.numpy()
        for key, value in resnet.state_dict().items()
        if not key.startswith("fc.") and "running" not in key
    }
    arrays |= {"fc1000_w": np.zeros((10, 4), np.float32), "conv1_w_momentum": np.zeros(3, np.float32), **more}
    data = pickle.dumps({"blobs": arrays}, protocol=2)
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return path


def test_the_caffe_resnet_of_detectron2_computes_what_it_did(tmp_path, resnet):
    """Theirs: BGR of 0 to 255 minus the mean, a stride in the first convolution, no variance to divide by."""
    bias = torch.linspace(-1.0, 1.0, 64)
    file = save_caffe(resnet, tmp_path / "R-50.pkl", conv1_b=bias.numpy())
    ours = build_resnet_fpn(weights=str(file)).body.eval()
    theirs = copy.deepcopy(resnet)
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    for layer in (theirs.layer2, theirs.layer3, theirs.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    theirs.conv1.bias = torch.nn.Parameter(bias)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    features = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(255 * (images - mean).flip(1)))))
    with torch.no_grad():
        levels = list(ours((images - mean) / std).values())
        for layer, level in zip(
            (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), levels, strict=True
        ):
            features = layer(features)
            torch.testing.assert_close(level, features, rtol=1e-3, atol=1e-3 * features.abs().max().item())


def test_a_resnet_in_detectron2s_own_names_is_torchvisions(tmp_path, resnet):
    def rename(key):
        if key.startswith(("conv1.", "bn1.")):
            return "stem.conv1." + ("norm." if key.startswith("bn1") else "") + key.rpartition(".")[2]
        layer, block, name, *rest = key.split(".")
        place = f"res{int(layer[-1]) + 1}.{block}."
        if name == "downsample":
            return place + "shortcut." + ("norm." if rest[0] == "1" else "") + rest[-1]
        return place + name.replace("bn", "conv") + (".norm." if name.startswith("bn") else ".") + rest[-1]

    plain = {key: value for key, value in resnet.state_dict().items() if not key.startswith("fc.")}
    content = {
        "model": {rename(key): value.numpy() for key, value in plain.items()},
        "__author__": "torchvision",
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    loaded = build_resnet_fpn(weights=str(tmp_path / "R-50.pkl")).body.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in plain.items())


def detector(num_classes, weights, **settings):
    backbone = build_resnet_fpn(detector_weights=weights)
    return build_mask_rcnn(backbone=backbone, num_classes=num_classes, weights=weights, **settings)


@pytest.mark.parametrize("layout", ["plain", "training", "safetensors"])
def test_a_detector_of_coco_brings_all_but_its_class_heads(tmp_path, coco, caplog, layout):
    file = tmp_path / ("coco.safetensors" if layout == "safetensors" else "coco.pth")
    state = coco
    if layout == "safetensors":
        save_file(state, file)
    else:
        torch.save({"model": state, "epoch": 25} if layout == "training" else state, file)
    with caplog.at_level(logging.WARNING):
        ours = detector(24, file).state_dict()
    others = {key for key in ours if key in state and ours[key].shape != state[key].shape}
    assert others == {
        f"roi_heads.{name}.{kind}"
        for name in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        for kind in ("weight", "bias")
    }
    assert all(key in caplog.text for key in others) and "left out" in caplog.text
    assert all(torch.equal(ours[key], value) for key, value in state.items() if key not in others)


def test_heads_of_as_many_classes_come_too(tmp_path, coco, caplog):
    torch.save(coco, tmp_path / "coco.pth")
    model = detector(90, tmp_path / "coco.pth")
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(model.state_dict()[name], coco[name]) and caplog.text == ""
    assert {p.requires_grad for p in model.backbone.body.layer1.parameters()} == {False}


def test_a_resnet_alone_starts_the_body_of_a_detector(tmp_path, resnet):
    model = detector(3, save_caffe(resnet, tmp_path / "R-50.pkl"))
    assert torch.equal(model.backbone.body.layer4[2].conv3.weight, resnet.layer4[2].conv3.weight)
    assert model.backbone.body.layer2[0].conv1.stride == (2, 2)


FOREIGN = {
    "empty.pth": b"",
    "page.pth": b"<!DOCTYPE html><html><body>404</body></html>",
    "page.pkl": b"<!DOCTYPE html><html><body>404</body></html>",
    "empty.pkl": b"",
    "code.pkl": pickle.dumps(print),
    "text.pkl": pickle.dumps("no weights"),
    "numbers.pkl": pickle.dumps({"model": {"epoch": 3}}),
    "page.safetensors": b"<!DOCTYPE html><html><body>404</body></html>",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_no_weights_are_one_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(FOREIGN[name])
    with pytest.raises(ValueError, match=rf"weights=.*{name} must hold a state dict") as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_no_code_in_a_pickle_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(ValueError, match=r"it wants (_?io|builtins)\.open, weights are arrays"):
        read_weights(tmp_path / "evil.pkl")
    assert not (tmp_path / "touched").exists()


def test_weights_of_another_network_are_refused_with_their_first_keys(tmp_path, coco):
    with pytest.raises(FileNotFoundError, match=r"'nowhere\.pth' is none"):
        build_mask_rcnn(backbone=MiniFPN(), num_classes=3, weights="nowhere.pth")
    torch.save({"encoder.layer.0.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(
        ValueError, match=r"ResNet-50, but it lacks \['bn1.* unknown \['encoder\.layer\.0\.weight'\]"
    ):
        detector(3, tmp_path / "foreign.pth")
    torch.save({k: v for k, v in coco.items() if "fpn" not in k}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"this detector, but it lacks \['backbone\.fpn"):
        detector(3, tmp_path / "half.pth")
    with pytest.raises(
        ValueError, match=r"must fit the model: size mismatch for backbone\.fpn\.inner_blocks"
    ):
        torch.save(coco, tmp_path / "coco.pth")
        build_mask_rcnn(backbone=MiniFPN(), num_classes=3, weights=tmp_path / "coco.pth")
