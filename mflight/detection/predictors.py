"""The last layers of the heads: class logits and box offsets of a region, and its mask."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

_INITIAL_STD = 0.01


class CosineLinear(nn.Linear):
    """A linear layer on unit vectors: ``temperature * cos(features, weight) + bias``.

    The length of a class's weights grows with its number of images, which favours frequent classes; here only
    their direction counts. It is worked out in float32 under autocast too, for a logit of 20 keeps no
    fractions in bfloat16.

    Args:
        in_features: length of a feature vector.
        out_features: number of logits.
        temperature: a logit lies within plus and minus it, bias aside.

    Source:
        Wang et al., "Seesaw loss", arXiv:2008.10032 (normalised linear activation, temperature 20).
    """

    def __init__(self, in_features: int, out_features: int, *, temperature: float = 20.0) -> None:
        super().__init__(in_features, out_features)
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        """Return logits float32[R, out_features] of float[R, in_features]."""
        with torch.autocast(features.device.type, enabled=False):
            cosines = F.linear(F.normalize(features.float(), dim=1), F.normalize(self.weight, dim=1))
            return self.temperature * cosines + self.bias


class BoxPredictor(nn.Module):
    """Class logits and box offsets of pooled features; keys as in torchvision's ``FastRCNNPredictor``.

    Args:
        in_channels: length of a feature vector.
        num_logits: outputs of the classifier.
        num_boxes: boxes a region: 1 when all classes share it, else the classes with the background.
        cosine_temperature: of a :class:`CosineLinear` classifier; ``None`` is a plain linear one.
        initial_bias: float32[num_logits] of the classifier, whose weights then start near 0; ``None`` leaves
            torch's own start.
    """

    def __init__(
        self,
        in_channels: int,
        num_logits: int,
        num_boxes: int,
        *,
        cosine_temperature: float | None = None,
        initial_bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        if cosine_temperature is None:
            self.cls_score = nn.Linear(in_channels, num_logits)
        else:
            self.cls_score = CosineLinear(in_channels, num_logits, temperature=cosine_temperature)
        self.bbox_pred = nn.Linear(in_channels, num_boxes * 4)
        if initial_bias is not None:
            nn.init.normal_(self.cls_score.weight, std=_INITIAL_STD)
            with torch.no_grad():
                self.cls_score.bias.copy_(initial_bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [R, num_logits] and offsets [R, num_boxes * 4] of float32[R, in_channels]."""
        return self.cls_score(features), self.bbox_pred(features)


class MaskPredictor(MaskRCNNPredictor):
    """torchvision's last layers of the mask branch, worked out only for the one channel that is asked for.

    Masks of all 1203 classes would take 128 regions x 1204 x 28 x 28 float32, 461 MB an image, in training
    and more than twice that for 300 detections. The numbers are the same, and so are the keys.
    """

    def forward(self, features: Tensor, channels: Tensor) -> Tensor:
        """Return logits [R, 2 h, 2 w] of float[R, C, h, w], of the channel that int64[R] gives."""
        features = self.relu(self.conv5_mask(features))
        if self.mask_fcn_logits.out_channels == 1:
            return self.mask_fcn_logits(features)[:, 0]
        weights = self.mask_fcn_logits.weight[channels, :, 0, 0]  # [R, C]
        bias = self.mask_fcn_logits.bias[channels]
        return torch.einsum("rchw,rc->rhw", features, weights) + bias[:, None, None]
