"""What mflight asks of a detector, whoever wrote it.

``model: {_target_: my_package.build}`` is enough for anything that keeps :class:`Detector`: it is trained,
validated by LVIS's rules, and fed with synthetic images. What looks into the heads of a detector of mflight's
own (``module.prior_correction``, ``callbacks.detector_check``) says so when it is asked of another.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, overload

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from mflight.data.target import Target


class Detector(Protocol):
    """An ``nn.Module`` with two ways of being called.

    In training it returns its losses, scalars that are added up; their names are free and appear as
    ``train/loss/NAME``. In evaluation it returns for each image, N detections by falling score:

    ==============  =====================  ============================================================
    ``boxes``       float32[N, 4]          xyxy px of the image as given
    ``labels``      int64[N]               in ``1..C``
    ``scores``      float32[N]             in [0, 1], falling
    ``roi_masks``   float32[N, 1, M, M]    probability of the object inside of its box; or else
    ``masks``       bool[N, H, W]          the whole image's
    ==============  =====================  ============================================================

    Images are float32[3, H, W] in [0, 1], each of its own size. A batch may show no instance at all. Every
    parameter that is trained must take part in every step, else several ranks do not fit together.
    """

    @overload
    def __call__(self, images: list[Tensor], targets: Sequence[Target]) -> Mapping[str, Tensor]: ...

    @overload
    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]: ...


class Proposals(NamedTuple):
    """Regions that may show an object.

    Attributes:
        boxes: float32[R, 4] of each image, xyxy px.
        scores: float32[R] of each image, in [0, 1].
    """

    boxes: list[Tensor]
    scores: list[Tensor]


class DetectorTransform(GeneralizedRCNNTransform):
    """torchvision's normalisation and batching; resizes in evaluation only and leaves masks unpasted.

    Args:
        min_size: shorter side in evaluation, in pixels, or ``None``.
        max_size: cap on the longer side, in pixels.
        image_mean: subtracted from each channel.
        image_std: each channel is divided by it.
    """

    def __init__(
        self,
        min_size: int | None,
        max_size: int,
        image_mean: tuple[float, float, float],
        image_std: tuple[float, float, float],
    ) -> None:
        super().__init__(min_size or 0, max_size, list(image_mean), list(image_std))
        self.resizes = min_size is not None

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image for evaluation."""
        if self.training or not self.resizes:
            return image, target
        return super().resize(image, target)

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Move boxes back to the size of the image as given; in training there are none."""
        if self.training:
            return result
        for prediction, shape, original in zip(result, image_shapes, original_image_sizes, strict=True):
            prediction["boxes"] = resize_boxes(prediction["boxes"], shape, original)
        return result
