"""Class scores for another prior than the detector was trained on."""

from typing import Annotated, Literal

import torch
from pydantic import Field, validate_call
from torch import Tensor


class PriorCorrection:
    """Shifts the class logits at evaluation; the background stays as it is, so nothing is trained anew.

    With n_c the instances of class c in the training annotations, and m_c those that training has seen::

        shift_c = tau * (log q_c - log p_c),   p_c = max(1, m_c) / sum_k max(1, m_k)
        q_c = max(1, n_c) / sum_k max(1, n_k)  (real),  1 / C  (uniform)

    m_c is counted in the targets of the training steps, an image by its weight in the classification loss. So
    it holds what repeat factors, crops, generated images and their share, warm-up and cool-down made of n_c.

    Args:
        tau: strength; 0 corrects nothing, 1 is the whole ratio of the priors.
        target: the prior to correct to: that of the real images, or all classes alike, as NorCal.

    Source:
        Pan et al., "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation"
        (NorCal), arXiv:2107.02170: ``exp(logit_c) / n_c^gamma``, the background's left.
    """

    @validate_call
    def __init__(
        self,
        *,
        tau: Annotated[float, Field(ge=0.0)] = 0.0,
        target: Literal["real", "uniform"] = "real",
    ) -> None:
        self.tau, self.target = tau, target

    def shift(self, real_counts: Tensor, trained_counts: Tensor) -> Tensor:
        """Return what is added to the logits of the classes.

        Args:
            real_counts: float[C], n of each class.
            trained_counts: float[C], m of each class.

        Returns:
            float32[C].

        Example:
            >>> real, trained = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])
            >>> PriorCorrection(tau=1.0).shift(real, trained).exp()
            tensor([1.5000, 0.5000])
        """
        wanted = torch.ones_like(real_counts) if self.target == "uniform" else real_counts
        return (self.tau * (_log_prior(wanted) - _log_prior(trained_counts))).float()


def _log_prior(counts: Tensor) -> Tensor:
    counts = counts.double().clamp_min(1.0)
    return (counts / counts.sum()).log()
