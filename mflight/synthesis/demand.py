"""How much of each class to draw next, from its rarity and from how the detector does on it. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, validate_call

from mflight.data.categories import Category

Power = Annotated[float, Field(ge=0.0, le=10.0)]


@dataclass(frozen=True)
class ClassSignals:
    """What is known of one class.

    Attributes:
        image_count: real training images that show it.
        loss: mean classification loss of the detector on its instances, >= 0; ``None`` if none was seen.
        ap: its latest average precision, in [0, 1]; ``None`` if it was not measured.
        num_drawn: regions that were drawn of it.
        num_kept: instances of it that are in the pool.
    """

    image_count: int
    loss: float | None = None
    ap: float | None = None
    num_drawn: int = 0
    num_kept: int = 0


class DemandRule:
    """Shares of the classes among the regions to draw.

    With n the real images of class c, L its loss, AP in [0, 1], and A its acceptance::

        w_c = n_c^-rarity_power * (L_c / mean L)^loss_power * (1 - AP_c)^ap_power * A_c^-acceptance_power
        share_c = floor / C + (1 - floor) * w_c / sum w
        A_c = max(min_acceptance, (kept_c + prior_regions * a) / ((drawn_c + prior_regions) * a))

    where ``a`` is the kept share of all regions, so that A is 1 for a class that is kept as often as the
    others. What is not known is neutral: a class without loss counts as the mean of the known losses, one
    without AP as the mean of the known APs. A class that the filter rejects more often is asked for more
    often, so that it does not vanish silently, but at most ``1 / min_acceptance`` times as often.

    Args:
        rarity_power: weight of rarity. One half is the square root of LVIS's repeat factors, 1 is inverse
            frequency, 0 leaves rarity out.
        loss_power: weight of the detector's loss; 0 leaves it out.
        ap_power: weight of what is missing to a perfect AP; 0 leaves the validation out.
        acceptance_power: 1 makes up for rejected regions, 0 leaves them out.
        min_acceptance: A is not below it, in (0, 1].
        prior_regions: so many regions of mean acceptance are counted to each class, against chance.
        floor: share of all regions that is spread over all classes alike, in [0, 1].

    Source:
        Askari-Hemmat et al., "Feedback-guided Data Synthesis for Imbalanced Classification",
        arXiv:2310.00158 (the classifier's own failures say what to draw); Gupta et al., "LVIS",
        arXiv:1908.03195 (square root of rarity). The product of powers and the floor are ours.
    """

    @validate_call
    def __init__(
        self,
        *,
        rarity_power: Power = 0.5,
        loss_power: Power = 1.0,
        ap_power: Power = 1.0,
        acceptance_power: Power = 1.0,
        min_acceptance: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2,
        prior_regions: Annotated[float, Field(gt=0.0)] = 10.0,
        floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1,
    ):
        self.rarity_power, self.loss_power, self.ap_power = rarity_power, loss_power, ap_power
        self.acceptance_power, self.min_acceptance = acceptance_power, min_acceptance
        self.prior_regions, self.floor = prior_regions, floor

    def shares(self, signals: Mapping[int, ClassSignals]) -> dict[int, float]:
        """Return the share of each class; a pure function.

        Args:
            signals: category_id to what is known of the class.

        Returns:
            category_id to a share in [0, 1]; they sum to 1.

        Raises:
            ValueError: if there is no class.
        """
        if not signals:
            raise ValueError("signals must hold at least one class, got none")
        mean_loss = _mean([one.loss for one in signals.values() if one.loss is not None])
        mean_ap = _mean([one.ap for one in signals.values() if one.ap is not None])
        acceptance = self._acceptance(signals)
        weights = {
            category_id: self._weight(one, mean_loss, mean_ap, acceptance[category_id])
            for category_id, one in signals.items()
        }
        total, uniform = sum(weights.values()), 1.0 / len(weights)
        if total <= 0.0:  # every class is perfect
            return dict.fromkeys(weights, uniform)
        return {
            category_id: self.floor * uniform + (1.0 - self.floor) * weight / total
            for category_id, weight in weights.items()
        }

    def _weight(self, one: ClassSignals, mean_loss: float, mean_ap: float, acceptance: float) -> float:
        rarity = 1.0 / max(1, one.image_count)
        relative_loss = 1.0 if one.loss is None or mean_loss <= 0.0 else one.loss / mean_loss
        missing_ap = 1.0 - (mean_ap if one.ap is None else one.ap)
        return (
            rarity**self.rarity_power
            * relative_loss**self.loss_power
            * missing_ap**self.ap_power
            * acceptance**-self.acceptance_power
        )

    def _acceptance(self, signals: Mapping[int, ClassSignals]) -> dict[int, float]:
        num_drawn = sum(one.num_drawn for one in signals.values())
        num_kept = sum(one.num_kept for one in signals.values())
        if not num_kept:
            return dict.fromkeys(signals, 1.0)
        overall = num_kept / num_drawn
        return {
            category_id: max(
                self.min_acceptance,
                (one.num_kept + self.prior_regions * overall)
                / ((one.num_drawn + self.prior_regions) * overall),
            )
            for category_id, one in signals.items()
        }


def signals_before_training(categories: Sequence[Category]) -> dict[int, ClassSignals]:
    """Return what is known of the classes when no detector has said anything: their rarity."""
    return {category.category_id: ClassSignals(category.image_count) for category in categories}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
