"""Classification losses for long-tailed data. Pure tensor functions, all in the notation of their papers.

A label is 0 for the background and ``1..C`` for the classes. Shapes: ``R`` regions, ``C`` classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def one_hot_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Return float32[R, C]: 1 at the class of each region; a row of the background is 0 all over.

    Args:
        labels: int64[R] in ``0..C``.
        num_classes: ``C``.

    Returns:
        float32[R, C].

    Example:
        >>> one_hot_classes(torch.tensor([2, 0]), num_classes=2).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    return F.one_hot(labels, num_classes + 1)[:, 1:].float()


def sigmoid_loss(logits: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted binary cross entropy of all entries, summed and divided by the regions.

    Args:
        logits: float32[R, C].
        wanted: float32[R, C] of 0 and 1.
        weights: float32, of that shape or one that broadcasts to it.

    Returns:
        A scalar; 0 where there is no region.
    """
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (losses * weights).sum() / max(1, len(logits))


def draw_federated_classes(
    labels: Tensor, class_weights: Tensor, num_sampled: int, generator: torch.Generator | None = None
) -> Tensor:
    """Choose the classes that a federated loss looks at: those of the regions, and drawn ones.

    Each further class is drawn with a probability in proportion to its weight, without repetition, until
    ``num_sampled`` are chosen. That is done by the keys ``weight / e`` with ``e`` of a unit exponential
    distribution, of which the largest are taken, so that a GPU never waits for a count.

    Args:
        labels: int64[R] in ``0..C``.
        class_weights: float32[C], not negative; a class of weight 0 is never drawn.
        num_sampled: classes to choose; where the regions have more, these are all chosen.
        generator: random state, on the device of the labels; torch's global one by default.

    Returns:
        bool[C].

    Source:
        Zhou et al., "Probabilistic two-stage detection", arXiv:2103.07461 (federated loss: 50 classes, drawn
        by the root of their image count); Efraimidis and Spirakis, "Weighted random sampling with a
        reservoir", 2006.

    Example:
        >>> class_weights = torch.tensor([0.0, 1.0, 1.0])
        >>> draw_federated_classes(torch.tensor([0, 3]), class_weights, num_sampled=2).tolist()
        [False, True, True]
    """
    present = torch.zeros(len(class_weights) + 1, dtype=torch.bool, device=labels.device)
    present = present.index_fill_(0, labels, True)[1:]
    keys = class_weights / torch.empty_like(class_weights).exponential_(generator=generator)
    keys = keys.masked_fill(present, torch.inf)
    best = keys.topk(min(num_sampled, len(keys))).indices
    drawn = torch.zeros_like(present).index_fill_(0, best, True) & (class_weights > 0)
    return present | drawn


def seesaw_losses(
    logits: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    *,
    p: float = 0.8,
    q: float = 2.0,
    min_score: float = 0.01,
) -> Tensor:
    """Cross entropy in which a class pushes down rarer ones less, and those it is confused with more.

    ======================  ===================================================================
    ``mitigation`` M_ij     1 where N_i <= N_j, else (N_j / N_i)^p
    ``compensation`` C_ij   1 where s_j <= s_i, else (s_j / s_i)^q, with s the softmax of z
    loss                    -log(exp(z_i) / (sum over j != i of M_ij C_ij exp(z_j) + exp(z_i)))
    ======================  ===================================================================

    Args:
        logits: ``z``, float32[R, C].
        labels: ``i``, int64[R] in ``1..C``: regions on objects only.
        class_counts: ``N``, int64[C], regions seen of each class; below 1 counts as 1.
        p: how much the frequency matters; 0 switches mitigation off.
        q: how much a confusion matters; 0 switches compensation off.
        min_score: lower bound of ``s_i`` in the compensation, in [0, 1), as in the authors' code; 0 is the
            paper's formula.

    Returns:
        float32[R], one loss a region.

    Source:
        Wang et al., "Seesaw loss for long-tailed instance segmentation", arXiv:2008.10032.
    """
    own = (labels - 1)[:, None]
    with torch.no_grad():
        log_counts = class_counts.clamp(min=1).to(logits.dtype).log()
        mitigation = p * (log_counts[None] - log_counts[own]).clamp(max=0)  # log M, [R, C]
        log_scores = logits.log_softmax(dim=1)
        floor = torch.full_like(log_scores[:, :1], min_score).log()
        compensation = q * (log_scores - log_scores.gather(1, own).maximum(floor)).clamp(min=0)  # log C
        log_factors = (mitigation + compensation).scatter_(1, own, 0.0)
    return F.cross_entropy(logits + log_factors, own[:, 0], reduction="none")


def eqlv2_weights(
    positive_sums: Tensor, negative_sums: Tensor, *, alpha: float = 4.0, gamma: float = 12.0, mu: float = 0.8
) -> tuple[Tensor, Tensor]:
    """Weigh each class by the ratio of the gradients that it has had from positives and from negatives.

    ==========  ===============================================================
    ``ratio``   g_j, the sum of positive over the sum of negative gradients
    negative    r_j = f(g_j) with f(x) = 1 / (1 + exp(-gamma (x - mu)))
    positive    q_j = 1 + alpha (1 - f(g_j))
    ==========  ===============================================================

    Args:
        positive_sums: float[C], not negative; see :func:`gradient_sums`.
        negative_sums: float[C], not negative. A class without any counts as balanced: both weights are 1.
        alpha: largest extra weight of positives.
        gamma: steepness of ``f``.
        mu: ratio at which ``f`` is a half.

    Returns:
        The weights of positives and of negatives, float[C] each.

    Source:
        Tan et al., "Equalization loss v2", arXiv:2012.08548.

    Example:
        >>> positive, negative = eqlv2_weights(torch.tensor([0.8, 0.0]), torch.tensor([1.0, 0.0]))
        >>> positive.tolist(), negative.tolist()
        ([3.0, 1.0], [0.5, 1.0])
    """
    ratio = torch.where(negative_sums > 0, positive_sums / negative_sums, torch.inf)
    negative = torch.sigmoid(gamma * (ratio - mu))
    return 1 + alpha * (1 - negative), negative


def gradient_sums(logits: Tensor, wanted: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the size of the gradients of a weighted sigmoid loss over the regions, by class.

    Args:
        logits: float32[R, C].
        wanted: float32[R, C] of 0 and 1.
        weights: float32[R, C].

    Returns:
        Those of the entries wanted 1 and of the entries wanted 0, float32[C] each.
    """
    gradients = (logits.sigmoid() - wanted).abs() * weights
    return (gradients * wanted).sum(dim=0), (gradients * (1 - wanted)).sum(dim=0)
