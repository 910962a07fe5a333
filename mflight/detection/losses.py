"""How a detector learns to classify its regions, and the scores that belong to each way.

Each loss says how many logits a region has, in which order, and how to turn them into scores; its state is
kept in buffers, so checkpoints hold it. Every rank must call it at every step, with or without regions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import ConfigDict, Field, validate_call
from torch import Tensor, nn
from torch.nn import functional as F

from mflight.data.categories import Categories
from mflight.functional.losses import (
    draw_federated_classes,
    eqlv2_weights,
    gradient_sums,
    one_hot_classes,
    seesaw_losses,
    sigmoid_loss,
)

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]


class ClassificationLoss(nn.Module, ABC):
    """What all of them have in common.

    ``loss(logits float32[R, num_logits], labels int64[R])`` is a scalar, 0 without regions; a label is 0 for
    the background, else ``1..C``. The last ``C`` logits are those of the classes.

    Args:
        num_classes: ``C``, without the background.
        num_logits: logits of a region.
    """

    def __init__(self, num_classes: int, num_logits: int) -> None:
        super().__init__()
        self.num_classes, self.num_logits = num_classes, num_logits

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Return float32[R, C] in [0, 1], the score of each class, of float32[R, num_logits]."""

    def shift_classes(self, logits: Tensor, shift: Tensor) -> Tensor:
        """Return the logits with float32[C] added to those of the classes; the background's stay."""
        return logits + F.pad(shift.to(logits), (self.num_logits - self.num_classes, 0))

    def initial_bias(self) -> Tensor | None:
        """Return float32[num_logits], the classifier's bias before training; ``None``: torch's own start."""
        return None


class SoftmaxLoss(ClassificationLoss):
    """Cross entropy over the background (logit 0) and the classes (1..C): torchvision's.

    Args:
        num_classes: ``C``, without the background.
    """

    @validate_call
    def __init__(self, *, num_classes: Count) -> None:
        super().__init__(num_classes, num_classes + 1)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over the regions."""
        return F.cross_entropy(logits, labels) if len(labels) else logits.sum() * 0

    def scores(self, logits: Tensor) -> Tensor:
        """Return the softmax without the background's share."""
        return logits.softmax(dim=1)[:, 1:]


class FederatedLoss(ClassificationLoss):
    """One sigmoid a class (logits 1..C, no background), over the classes at hand and some drawn ones.

    An image of LVIS is not labelled for all classes, so at each step only a few are looked at: those of the
    regions, and others by the root of their image count, ``num_sampled`` in all. Each rank draws its own.
    The first step raises a ValueError where there are not ``num_classes`` categories.

    Args:
        num_classes: ``C``, without the background.
        categories: called at the first training step; tells in how many training images each class is.
        num_sampled: classes of a step; all of them where there are fewer.
        frequency_power: of the image count in the draw; 0 draws all classes alike.
        prior: score of every class before training.

    Source:
        Zhou et al., "Probabilistic two-stage detection", arXiv:2103.07461; settings of Detic,
        arXiv:2201.02605.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        num_classes: Count,
        categories: Callable[[], Categories],
        num_sampled: Count = 50,
        frequency_power: NotNegative = 0.5,
        prior: Probability = 0.01,
    ) -> None:
        super().__init__(num_classes, num_classes)
        self._categories, self._frequency_power = categories, frequency_power
        self._num_sampled, self._prior, self._is_ready = num_sampled, prior, False
        # a property of the dataset, not of the training: read anew by every run
        self.register_buffer("class_weights", torch.ones(num_classes), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over the chosen classes, divided by the regions."""
        self._read_class_weights()
        chosen = draw_federated_classes(labels, self.class_weights, self._num_sampled)
        return sigmoid_loss(logits, one_hot_classes(labels, self.num_classes), chosen.float())

    def scores(self, logits: Tensor) -> Tensor:
        """Return the sigmoids."""
        return logits.sigmoid()

    def initial_bias(self) -> Tensor:
        """Return the logit of ``prior``."""
        return torch.full((self.num_logits,), _logit(self._prior))

    def _read_class_weights(self) -> None:
        if self._is_ready:
            return
        counts = torch.tensor([float(category.image_count) for category in self._categories()])
        if len(counts) != self.num_classes:
            raise ValueError(
                f"data.num_classes must be the {len(counts)} classes of data.train_annotations, "
                f"got {self.num_classes} in model.classification_loss"
            )
        self.class_weights.copy_(counts**self._frequency_power * (counts > 0))
        self._is_ready = True


class SeesawLoss(ClassificationLoss):
    """Seesaw loss over the classes (logits 2..C+1) beside an objectness: background 0, object 1.

    The regions on objects that all ranks have seen are counted by class, the present step included. A score
    is the class's softmax among the classes times the object's against the background.

    Args:
        num_classes: ``C``, without the background.
        p: how much the frequency matters.
        q: how much a confusion matters.
        min_score: see :func:`mflight.functional.losses.seesaw_losses`.

    Source:
        Wang et al., "Seesaw loss for long-tailed instance segmentation", arXiv:2008.10032.
    """

    @validate_call
    def __init__(
        self,
        *,
        num_classes: Count,
        p: NotNegative = 0.8,
        q: NotNegative = 2.0,
        min_score: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01,
    ) -> None:
        super().__init__(num_classes, num_classes + 2)
        self._factors = {"p": p, "q": q, "min_score": min_score}
        self.register_buffer("class_counts", torch.zeros(num_classes, dtype=torch.int64))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return objectness and class loss, each summed and divided by all regions."""
        seen = torch.bincount(labels, minlength=self.num_classes + 1)[1:]
        self.class_counts += sum_over_ranks(seen)[0]
        on_object = labels > 0
        objectness = F.cross_entropy(logits[:, :2], on_object.long(), reduction="sum")
        classes = seesaw_losses(logits[on_object, 2:], labels[on_object], self.class_counts, **self._factors)
        return (objectness + classes.sum()) / max(1, len(labels))

    def scores(self, logits: Tensor) -> Tensor:
        """Return the product of the two softmaxes."""
        return logits[:, 2:].softmax(dim=1) * logits[:, :2].softmax(dim=1)[:, 1:]

    def initial_bias(self) -> Tensor:
        """Return zeros."""
        return torch.zeros(self.num_logits)


class EQLv2Loss(ClassificationLoss):
    """Equalization loss v2: a sigmoid for each class (logits 1..C) and for the background (logit 0).

    A class whose negatives have outweighed its positives so far has these made stronger and those weaker. The
    gradients of all ranks are summed up, after that weighing; the background's have the weight 1 throughout.
    A score is the class's sigmoid times one minus the background's. A precision that turns the whole module
    to 16 bits, in which the sums would stop growing, is a ValueError at the first step.

    Args:
        num_classes: ``C``, without the background.
        alpha: largest extra weight of positives.
        gamma: steepness of the weights.
        mu: ratio of gradients at which negatives count half.
        prior: score of every class before training.

    Source:
        Tan et al., "Equalization loss v2", arXiv:2012.08548.
    """

    @validate_call
    def __init__(
        self,
        *,
        num_classes: Count,
        alpha: NotNegative = 4.0,
        gamma: Positive = 12.0,
        mu: Positive = 0.8,
        prior: Probability = 0.001,
    ) -> None:
        super().__init__(num_classes, num_classes + 1)
        self._factors, self._prior = {"alpha": alpha, "gamma": gamma, "mu": mu}, prior
        for name in ("positive_sums", "negative_sums"):
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.float64))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over classes and background, divided by the regions."""
        if self.positive_sums.dtype != torch.float64:
            raise ValueError(
                "EQLv2 needs a trainer.precision that keeps its sums in float64: 32-true, bf16-mixed or "
                f"16-mixed; it got {self.positive_sums.dtype}"
            )
        wanted = torch.cat([(labels == 0)[:, None].float(), one_hot_classes(labels, self.num_classes)], dim=1)
        weights = self._weights(wanted)
        loss = sigmoid_loss(logits, wanted, weights)
        with torch.no_grad():
            sums = gradient_sums(logits[:, 1:], wanted[:, 1:], weights[:, 1:])
            positive, negative = sum_over_ranks(*(values.double() for values in sums))
            self.positive_sums += positive
            self.negative_sums += negative
        return loss

    def scores(self, logits: Tensor) -> Tensor:
        """Return the sigmoids of the classes, times one minus that of the background."""
        scores = logits.sigmoid()
        return scores[:, 1:] * (1 - scores[:, :1])

    def initial_bias(self) -> Tensor:
        """Return the logit of ``prior`` for the classes, and 0 for the background."""
        bias = torch.full((self.num_logits,), _logit(self._prior))
        bias[0] = 0.0
        return bias

    def _weights(self, wanted: Tensor) -> Tensor:
        """Return float32[R, C + 1]; column 0, of the background, is 1."""
        positive, negative = eqlv2_weights(self.positive_sums, self.negative_sums, **self._factors)
        positive, negative = (F.pad(values.float(), (1, 0), value=1.0) for values in (positive, negative))
        return torch.where(wanted > 0, positive, negative)


def sum_over_ranks(*values: Tensor) -> list[Tensor]:
    """Add up tensors of one shape and dtype over all training processes, in one message; alone: a copy."""
    together = torch.stack(values)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(together)
    return list(together)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
