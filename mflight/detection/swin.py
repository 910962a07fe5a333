"""A Swin transformer with a feature pyramid, as in Detic."""

from collections import OrderedDict
from pathlib import Path
from typing import Annotated

from pydantic import Field, validate_call
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from transformers import SwinBackbone, SwinConfig

from mflight.detection.public_weights import name_swins
from mflight.detection.starting_weights import read_weights
from mflight.mistakes import Mistake

_OUT_CHANNELS = 256
_OWN = "hidden_states_norms."  # of the detector, no classifier has them


class SwinFPN(nn.Module):
    """Levels ``"0"`` to ``"2"``, ``"p6"`` and ``"p7"`` of strides 8 to 128; the defaults are Swin-B's.

    Weights of another network are a ``ValueError``, and a ``Mistake`` if they cannot be fetched.

    Args:
        weights: ``"none"`` for random numbers; a file in the authors' names, such as
            ``swin_base_patch4_window7_224_22k.pth``; or the hub id or folder of such a model in transformers'
            format, downloaded once.
        detector_weights: a file that brings the whole detector's weights later, so that ``weights`` are not
            read; ``None`` if there is none.
        embed_dim: channels of the first stage.
        depths: blocks of each stage.
        num_heads: of attention, of each stage.
        window_size: cells a side within which attention is paid.
        drop_path_rate: of the last block; it rises linearly.

    Source:
        Liu et al., "Swin Transformer", arXiv:2103.14030.
    """

    @validate_call
    def __init__(
        self,
        *,
        weights: str = "microsoft/swin-base-patch4-window7-224-in22k",
        detector_weights: Path | None = None,
        embed_dim: Annotated[int, Field(ge=1)] = 128,
        depths: tuple[int, int, int, int] = (2, 2, 18, 2),
        num_heads: tuple[int, int, int, int] = (4, 8, 16, 32),
        window_size: Annotated[int, Field(ge=1)] = 7,
        drop_path_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3,
    ) -> None:
        super().__init__()
        config = SwinConfig(
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=list(num_heads),
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            out_features=["stage2", "stage3", "stage4"],
        )
        self.body = SwinBackbone(config)
        if detector_weights is None and weights != "none":
            _load(self.body, weights)
        self.body.swin.layernorm = nn.Identity()  # of the classifier: no output uses it, DDP would miss it
        self.fpn = FeaturePyramidNetwork(
            self.body.channels, _OUT_CHANNELS, extra_blocks=LastLevelP6P7(_OUT_CHANNELS, _OUT_CHANNELS)
        )
        self.out_channels = _OUT_CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels, [B, 256, H / s, W / s], of float32[B, 3, H, W]."""
        maps = self.body(images).feature_maps
        return self.fpn(OrderedDict((str(number), level) for number, level in enumerate(maps)))


def _load(body: SwinBackbone, weights: str) -> None:
    if Path(weights).is_file():
        state = name_swins(read_weights(weights))
    else:
        try:
            state = SwinBackbone.from_pretrained(weights).state_dict()
        except (OSError, ValueError) as error:
            raise Mistake(
                f"model.backbone.weights={weights} must be 'none', a file, or a Swin transformer's folder or "
                f"hub id that can be fetched ({str(error).splitlines()[0]})"
            ) from error
    own = body.state_dict()
    wanted = {key for key in own if not key.startswith((_OWN, "swin.layernorm."))}
    state = {
        key: value
        for key, value in state.items()
        if key in wanted or not key.startswith((_OWN, "swin.layernorm."))
    }
    wrong = sorted(wanted ^ state.keys()) or sorted(k for k in wanted if state[k].shape != own[k].shape)
    if wrong:
        raise ValueError(
            f"model.backbone.weights={weights} must be those of a Swin transformer of this size, they differ "
            f"in {wrong[:3]}"
        )
    body.load_state_dict(state, strict=False)
