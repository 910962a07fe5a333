"""Weights of a detector's start, in torchvision's, detectron2's or Detic's layout. No code in it is run."""

import logging
import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mflight.detection.public_weights import is_detics, name_detics

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

_CLASS_HEADS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
_NUM_NAMED = 3
_IMAGENET_STD = (0.229, 0.224, 0.225)
_FROZEN_EPS = 1e-5  # of torchvision's frozen normalisation
_DAMAGE = (
    *(RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError),
    *(IndexError, AttributeError, ImportError, UnicodeDecodeError, MemoryError, OverflowError),
)


def read_weights(file: str | Path) -> State:
    """Read a state dict: of ``.safetensors``, of ``torch.save``, or of detectron2's ``.pkl`` of arrays.

    A checkpoint that holds it under ``model``, ``state_dict`` or ``blobs`` is opened.

    Args:
        file: the file.

    Returns:
        Weights by name, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no weights.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"weights must name a file, {str(file)!r} is none")
    try:
        held = _read(path)
    except _DAMAGE as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"weights={path} must hold a state dict (.pth, .safetensors, or detectron2's .pkl), its "
            f"{path.stat().st_size:,} bytes cannot be read as one ({said})"
        ) from error
    for name in ("model", "state_dict", "blobs"):
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    weights = {
        str(name): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in (held.items() if isinstance(held, Mapping) else ())
        if isinstance(value, np.ndarray | Tensor)
    }
    if not weights:
        raise ValueError(
            f"weights={path} must hold a state dict, it holds a {type(held).__name__} without tensors"
        )
    return weights


def load_resnet(resnet: nn.Module, state: Mapping[str, Tensor], file: str | Path, depth: int) -> None:
    """Load torchvision's or detectron2's ImageNet weights into a ResNet, or into the body of a pyramid.

    Those of another network are a ``ValueError``.

    Args:
        resnet: torchvision's, with or without its classifier.
        state: from ``read_weights``.
        file: where it comes from, for the message.
        depth: layers of the ResNet, for the message.

    Source:
        MSRA's ``R-50.pkl`` of detectron2's model zoo: BGR of 0 to 255 minus the mean, a layer's stride in
        its first convolution, normalisation as a scale and a shift.
    """
    is_of_caffe = "conv1_w" in state
    state = _named_by_torchvision(state)
    if is_of_caffe:
        scale = 255 * torch.tensor(_IMAGENET_STD)[:, None, None]
        state["conv1.weight"] = state["conv1.weight"].flip(1) * scale  # of RGB, divided by its deviation
        for name in ("layer2", "layer3", "layer4"):
            first = getattr(resnet, name)[0]
            first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
    wanted = {key for key in resnet.state_dict() if not _is_unused(key)}
    state = {key: value for key, value in state.items() if not _is_unused(key)}
    _check_keys(file, f"the state dict of a ResNet-{depth}", wanted - state.keys(), state.keys() - wanted)
    _load(resnet, state, file)


def load_detector(model: nn.Module, file: str | Path) -> None:
    """Load the weights of a whole detector, or of its ResNet alone; heads of other classes are left out.

    Args:
        model: from ``build_mask_rcnn`` or ``build_centernet2``.
        file: a state dict in torchvision's layout, such as that of ``maskrcnn_resnet50_fpn`` trained on COCO,
            or Detic's.

    Raises:
        ValueError: if they are another network's.
    """
    state = read_weights(file)
    if is_detics(state):
        state = name_detics(state)
    if "conv1_w" in state or not any(key.startswith(("backbone.", "model.backbone.")) for key in state):
        body = getattr(model.backbone, "body", None)
        if not hasattr(body, "layer3"):
            raise ValueError(f"weights={file} must be a whole detector's, this backbone takes no ResNet")
        depth = 101 if len(body.layer3) > 6 else 50
        load_resnet(body, state, file, depth)
        return
    state = {key.removeprefix("model."): value for key, value in state.items()}  # of a Lightning checkpoint
    own = model.state_dict()
    others = [
        key
        for key in own
        if key.startswith(_CLASS_HEADS) and key in state and state[key].shape != own[key].shape
    ]
    for key in others:
        del state[key]
    if others:
        logger.warning(
            "weights=%s: the heads of its classes are left out, they are not as many as yours: %s",
            *(file, ", ".join(others)),
        )
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"weights={file} must fit the model: {_shape_of(error)}") from error
    missing = [key for key in result.missing_keys if key not in others and not _is_unused(key)]
    _check_keys(file, "the state dict of this detector", missing, result.unexpected_keys)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pkl":
        with path.open("rb") as stream:
            return _ArrayUnpickler(stream, encoding="latin1").load()  # detectron2's are of Python 2
    return torch.load(path, map_location="cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, texts and numpy's arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        place = (module.replace("numpy.core", "numpy._core"), name)
        if place in {("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar")}:
            return getattr(np._core.multiarray, name)
        if place in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if place == ("_codecs", "encode"):  # bytes of Python 2
            return lambda text, encoding: str(text).encode("latin1")
        if place == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"it wants {module}.{name}, weights are arrays")


_LAYERS = {"branch1": "downsample.0", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_NORMS = {"branch1": "downsample.1", "branch2a": "bn1", "branch2b": "bn2", "branch2c": "bn3"}


def _named_by_torchvision(state: Mapping[str, Tensor]) -> State:
    """Rename the weights of detectron2's ResNets, in Caffe2's names or its own."""
    renamed: State = {}
    state = {key: value for key, value in state.items() if not key.endswith("_momentum")}
    for key, value in state.items():
        if match := re.fullmatch(r"(?:res_)?conv1(_bn)?_([wsb])", key):
            _put(renamed, "bn1" if match[1] else "conv1", match[2], value)
        elif match := re.fullmatch(r"res(\d)_(\d+)_(branch\w+?)(_bn)?_([wsb])", key):
            name = (_NORMS if match[4] else _LAYERS)[match[3]]
            _put(renamed, f"layer{int(match[1]) - 1}.{match[2]}.{name}", match[5], value)
        elif match := re.fullmatch(r"(?:stem\.|res(\d)\.(\d+)\.)(conv(\d)|shortcut)(\.norm)?\.(\w+)", key):
            prefix = f"layer{int(match[1]) - 1}.{match[2]}." if match[1] else ""
            norm = f"bn{match[4]}" if match[4] else "downsample.1"
            name = norm if match[5] else ("downsample.0" if match[3] == "shortcut" else match[3])
            renamed[f"{prefix}{name}.{match[6]}"] = value
        else:
            renamed[key] = value
    if "conv1_w" in state:
        _fold_biases(renamed)
    return renamed


def _fold_biases(state: State) -> None:
    """Move the bias of each convolution, which torchvision's have not, into the shift behind it."""
    for key in [key for key in state if re.search(r"(conv\d|downsample\.0)\.bias$", key)]:
        norm = re.sub(r"conv(\d)\.bias$", r"bn\1", key).replace("downsample.0.bias", "downsample.1")
        state[f"{norm}.bias"] = state[f"{norm}.bias"] + state[f"{norm}.weight"] * state.pop(key)


def _put(renamed: State, name: str, kind: str, value: Tensor) -> None:
    """Add a convolution's weight, or one half of a scale and shift as a normalisation of unit variance."""
    renamed[f"{name}.{'bias' if kind == 'b' else 'weight'}"] = value
    if kind == "s":
        renamed[f"{name}.running_mean"] = torch.zeros_like(value)
        renamed[f"{name}.running_var"] = torch.ones_like(value) - _FROZEN_EPS


def _is_unused(key: str) -> bool:
    """The classifier of ImageNet, and what frozen normalisation does not keep."""
    return key.startswith(("fc.", "fc1000_", "pred_")) or key.endswith("num_batches_tracked")


def _load(module: nn.Module, state: Mapping[str, Tensor], file: str | Path) -> None:
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"weights={file} must fit the model: {_shape_of(error)}") from error


def _check_keys(file: str | Path, what: str, missing: Collection[str], unknown: Collection[str]) -> None:
    unknown = [key for key in unknown if not _is_unused(key)]
    if missing or unknown:
        raise ValueError(
            f"weights={file} must hold {what}, but it lacks {sorted(missing)[:_NUM_NAMED]} and has unknown "
            f"{sorted(unknown)[:_NUM_NAMED]}"
        )


def _shape_of(error: RuntimeError) -> str:
    """The first weight of another shape, of torch's list of all."""
    return next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), str(error))
