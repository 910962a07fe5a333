"""The last layers of a stage of the cascade: class logits, and one box for all classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mflight.detection.losses import ClassificationLoss

_CLASS_STD, _BOX_STD = 0.01, 0.001


class TextClassifier(nn.Module):
    """Compares a projection of a region with the text embedding of each class, which is never trained.

    Logits are ``temperature * cos(project(x), embedding)``, without a bias: before training the scores lie
    around 0.5, so the first losses are large. It is worked out in float32 under autocast too.

    Args:
        in_features: length of a feature vector.
        embeddings: float32[C, D] of length 1 each.
        temperature: largest logit.

    Source:
        Zhou et al., "Detecting Twenty-thousand Classes using Image-level Supervision", arXiv:2201.02605.
    """

    def __init__(self, in_features: int, embeddings: Tensor, temperature: float = 50.0) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, embeddings.shape[1])
        self.temperature = temperature
        self.register_buffer("embeddings", embeddings.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits float32[R, C] of float[R, in_features]."""
        projected = self.project(features)
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(self.temperature * F.normalize(projected.float(), dim=1), self.embeddings)


class StagePredictor(nn.Module):
    """Class logits and box offsets of a region; with a linear classifier, or with one of text embeddings.

    Args:
        in_features: length of a feature vector.
        loss: of the class logits.
        embeddings: float32[C, D] of length 1 each for a :class:`TextClassifier`, beside which the box has a
            hidden layer, as in Detic; ``None`` for a linear one.
    """

    def __init__(self, in_features: int, loss: ClassificationLoss, embeddings: Tensor | None = None) -> None:
        super().__init__()
        box = nn.Linear(in_features, 4)
        nn.init.normal_(box.weight, std=_BOX_STD)
        nn.init.zeros_(box.bias)
        if embeddings is None:
            self.classifier: nn.Module = nn.Linear(in_features, loss.num_logits)
            nn.init.normal_(self.classifier.weight, std=_CLASS_STD)
            bias = loss.initial_bias()
            with torch.no_grad():
                self.classifier.bias.copy_(torch.zeros(()) if bias is None else bias)
            self.box: nn.Module = box
        else:
            self.classifier = TextClassifier(in_features, embeddings)
            self.box = nn.Sequential(nn.Linear(in_features, in_features), nn.ReLU(inplace=True), box)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits float32[R, num_logits] and offsets float32[R, 4] of float[R, in_features]."""
        return self.classifier(features).float(), self.box(features).float()
