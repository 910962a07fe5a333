"""A detector that mflight does not know, torchvision's Mask R-CNN v2, trained and scored by mflight.

python train.py --config-dir examples model=torchvision

``examples/model/torchvision.yaml`` names the function below; nothing else is needed.
"""

from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2


class TorchvisionDetector(nn.Module):
    """Hands whole-image masks to mflight as bits; the losses of training are torchvision's.

    Args:
        model: takes images and targets, and returns float32[N, 1, H, W] masks in evaluation.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses by name in training, else the detections of each image."""
        if self.training:
            return self.model(images, targets)
        return [{**found, "masks": found["masks"][:, 0] > 0.5} for found in self.model(images)]


def build(*, num_classes: int, min_size: int = 800, max_size: int = 1333) -> nn.Module:
    """Build the detector from random numbers.

    Args:
        num_classes: without the background, which torchvision counts.
        min_size: shorter side of the images, in pixels.
        max_size: cap on the longer one.
    """
    return TorchvisionDetector(
        maskrcnn_resnet50_fpn_v2(
            weights=None,
            weights_backbone=None,
            num_classes=num_classes + 1,
            min_size=min_size,
            max_size=max_size,
            box_score_thresh=1e-4,  # LVIS counts low scores too, and 300 detections an image
            box_detections_per_img=300,
        )
    )
