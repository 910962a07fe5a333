"""Feature pyramids: torchvision's ResNets for LVIS, a narrow one for 128 px images."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, validate_call
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights, resnet50, resnet101
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mflight.detection.starting_weights import load_resnet, read_weights
from mflight.mistakes import Mistake

_RESNETS = {50: (resnet50, ResNet50_Weights.IMAGENET1K_V1), 101: (resnet101, ResNet101_Weights.IMAGENET1K_V1)}
_CHANNELS_PER_GROUP = 16


@validate_call
def build_resnet_fpn(
    *,
    depth: Literal[50, 101] = 50,
    weights: str = "imagenet",
    trainable_layers: Annotated[int, Field(ge=0, le=5)] = 3,
    levels: Literal["p2_p6", "p3_p7"] = "p2_p6",
    detector_weights: Path | None = None,
) -> BackboneWithFPN:
    """Build torchvision's ResNet with its feature pyramid: 256 channels at strides 4 to 64, or 8 to 128.

    A file that holds something else is a ``ValueError``.

    Args:
        depth: layers of the ResNet.
        weights: ``"imagenet"`` for torchvision's IMAGENET1K_V1 weights, downloaded once; ``"none"`` to
            start from random numbers; else the path of a file with a ResNet's state dict, in torchvision's
            layout (as MIIL's ``resnet50_miil_21k.pth`` is) or in detectron2's (``R-50.pkl``), see
            ``mflight.detection.starting_weights``.
        trainable_layers: how many stages, counted from the last, are trained; batch normalisation is frozen.
            With ``weights="none"`` everything is trained, normalisation included, for random numbers
            that nobody trains would be of no use.
        levels: ``"p2_p6"`` has strides 4 to 64, ``"p3_p7"`` 8 to 128, whose last two are convolutions more.
        detector_weights: a file that brings the whole detector's weights later, so that those of ImageNet are
            not fetched; ``None`` if there is none.

    Returns:
        The backbone; ``out_channels`` is 256.
    """
    build, imagenet = _RESNETS[depth]
    pyramid = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    pyramid = {} if levels == "p2_p6" else pyramid
    if weights == "none":
        return _resnet_fpn_extractor(build(weights=None), trainable_layers=5, **pyramid)
    resnet = build(weights=None, norm_layer=FrozenBatchNorm2d)
    if weights != "imagenet":
        load_resnet(resnet, read_weights(_existing_file(weights)), weights, depth)
    elif detector_weights is None:
        load_resnet(resnet, _fetch_imagenet(imagenet, depth), weights, depth)
    return _resnet_fpn_extractor(resnet, trainable_layers, **pyramid)


class MiniFPN(nn.Module):
    """A narrow residual network with a feature pyramid, for images of about 128 px.

    Args:
        stage_channels: channels of each stage; stage ``i`` works at stride ``4 * 2**i``; multiples of 16.
        blocks_per_stage: residual blocks in a stage; 2 is ResNet-18's number.
        out_channels: channels of every level of the pyramid; a multiple of 16.
        normalization: ``"group"`` is indifferent to the batch and to its mix of real and synthetic images;
            ``"batch"`` is torchvision's, trained from the start.

    Raises:
        ValueError: if a number of channels is no multiple of 16.
    """

    @validate_call
    def __init__(
        self,
        *,
        stage_channels: tuple[int, ...] = (48, 64, 96, 128),
        blocks_per_stage: Annotated[int, Field(ge=1)] = 1,
        out_channels: Annotated[int, Field(ge=16)] = 64,
        normalization: Literal["group", "batch"] = "group",
    ) -> None:
        super().__init__()
        for channels in (*stage_channels, out_channels):
            if channels % _CHANNELS_PER_GROUP:
                raise ValueError(f"channels must be multiples of {_CHANNELS_PER_GROUP}, got {channels}")
        norm_layer = _group_norm if normalization == "group" else nn.BatchNorm2d
        width = stage_channels[0] // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), norm_layer(width), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList()
        for channels in stage_channels:
            blocks = [_residual_block(width, channels, 2, norm_layer)]
            blocks += [
                _residual_block(channels, channels, 1, norm_layer) for _ in range(blocks_per_stage - 1)
            ]
            self.stages.append(nn.Sequential(*blocks))
            width = channels
        self.fpn = FeaturePyramidNetwork(list(stage_channels), out_channels, norm_layer=norm_layer)
        self.out_channels = out_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return levels ``"i"``, [B, out_channels, H / s, W / s], s = 4 * 2^i, of float32[B, 3, H, W]."""
        features = self.stem(images)
        levels = OrderedDict()
        for index, stage in enumerate(self.stages):
            features = stage(features)
            levels[str(index)] = features
        return self.fpn(levels)


def _residual_block(
    width_in: int, width: int, stride: int, norm_layer: Callable[[int], nn.Module]
) -> BasicBlock:
    shortcut = None
    if stride > 1 or width_in != width:
        shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), norm_layer(width))
    return BasicBlock(width_in, width, stride, shortcut, norm_layer=norm_layer)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(channels // _CHANNELS_PER_GROUP, 1), channels)


def _existing_file(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights must be 'imagenet', 'none' or the path of a file, got {path!r}")
    return Path(path)


def _fetch_imagenet(weights: ResNet50_Weights | ResNet101_Weights, depth: int) -> dict[str, Tensor]:
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise Mistake(
            f"weights='imagenet' needs {weights.url}, which could not be fetched ({error}); "
            "download it elsewhere and give its path as weights, "
            f"or train ResNet-{depth} from random numbers with weights='none'"
        ) from error
