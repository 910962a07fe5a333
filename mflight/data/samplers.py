"""In which order and how often images come: by repeat factors, or by classes in turn."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, validate_call
from torch import Tensor
from torch.utils.data import Sampler


def category_frequencies(image_categories: Sequence[Iterable[int]]) -> dict[int, float]:
    """Return, for each class that occurs, the share of images that show it: ``f(c)``, in (0, 1]."""
    counts = Counter(c for categories in image_categories for c in set(categories))
    return {category: count / len(image_categories) for category, count in counts.items()}


def repeat_factors(
    category_frequency: Mapping[int, float],
    image_categories: Sequence[Iterable[int]],
    threshold: float = 0.001,
) -> Tensor:
    """Return how often each image should come in one epoch, on average.

    Args:
        category_frequency: ``f(c)``, the share of training images that show class ``c``, in (0, 1].
        image_categories: the classes of each image; an image without any gets 1.
        threshold: ``t``: classes in a smaller share of images are repeated. 0 repeats nothing.

    Returns:
        float64, one factor >= 1 an image.

    Raises:
        ValueError: if ``threshold`` is negative, or a frequency lies outside (0, 1].

    Source:
        Gupta et al., "LVIS", arXiv:1908.03195, appendix B; detectron2's RepeatFactorTrainingSampler.

    Example:
        >>> repeat_factors({1: 0.25, 2: 1.0}, [[1, 2], [2], []], threshold=1.0).tolist()
        [2.0, 1.0, 1.0]
    """
    if threshold < 0:
        raise ValueError(f"threshold must be >= 0, got {threshold}")
    for category, frequency in category_frequency.items():
        if not 0 < frequency <= 1:
            raise ValueError(f"the frequency of category {category} must lie in (0, 1], got {frequency}")
    # 1. for each class: r(c) = max(1, sqrt(t / f(c)))
    per_category = {c: max(1.0, math.sqrt(threshold / f)) for c, f in category_frequency.items()}
    # 2. for each image, the class that needs it most: r(i) = max over c in i of r(c)
    per_image = [max((per_category[c] for c in categories), default=1.0) for categories in image_categories]
    return torch.tensor(per_image, dtype=torch.float64)


class EpochSampler(Sampler[int], ABC):
    """Endless indices of images, epoch after epoch; an epoch is a pure function of ``(seed, epoch)``.

    All ranks draw the same epoch and take turns in it, so that together they see each of its entries once.

    Args:
        seed: fixes the order.
        rank: of this process, in ``0 .. num_ranks - 1``.
        num_ranks: number of processes that share the epoch.

    Raises:
        ValueError: if ``rank`` is out of range.
    """

    def __init__(self, seed: int, rank: int, num_ranks: int) -> None:
        if rank >= num_ranks:
            raise ValueError(f"rank must be less than num_ranks={num_ranks}, got {rank}")
        self._seed, self._rank, self._num_ranks = seed, rank, num_ranks
        self._epoch, self._position = 0, 0

    def epoch_indices(self, epoch: int) -> Tensor:
        """Return int64: the images of an epoch for all ranks, in order."""
        entropy = np.random.SeedSequence([self._seed, epoch]).generate_state(1)
        return self._draw(torch.Generator().manual_seed(int(entropy[0])))

    @abstractmethod
    def _draw(self, generator: torch.Generator) -> Tensor:
        """Return int64: the images of one epoch for all ranks, in order."""

    def __iter__(self) -> Iterator[int]:
        """Yield the images of this rank, epoch after epoch, from where the state stands."""
        while True:
            # rank k of K takes the entries k, k + K, k + 2 K, ... of the epoch
            indices = self.epoch_indices(self._epoch)[self._rank :: self._num_ranks].tolist()
            if not indices:
                raise ValueError(
                    f"an epoch must hold an image for each of the {self._num_ranks} ranks, "
                    f"rank {self._rank} gets none"
                )
            while self._position < len(indices):
                self._position += 1
                yield indices[self._position - 1]
            self._epoch, self._position = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the stream: epoch and number of indices taken of it by this rank."""
        place = {"epoch": self._epoch, "position": self._position}
        return {**place, "seed": self._seed, "num_ranks": self._num_ranks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; seed and number of ranks must be the same."""
        for name, mine in (("seed", self._seed), ("num_ranks", self._num_ranks)):
            if state[name] != mine:
                raise ValueError(f"the state was taken with {name}={state[name]}, here {name} is {mine}")
        self._epoch, self._position = state["epoch"], state["position"]


class RepeatFactorSampler(EpochSampler):
    """Each epoch holds every image about as often as its factor says.

    Args:
        factors: float64[I], at least 1 each, from :func:`repeat_factors`; all 1 is plain shuffling.
        seed: fixes the order.
        rank: of this process, in ``0 .. num_ranks - 1``.
        num_ranks: number of processes that share the epoch.

    Raises:
        ValueError: if ``factors`` is empty or holds a number below 1, or ``rank`` is out of range.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        *,
        factors: Tensor,
        seed: int = 0,
        rank: Annotated[int, Field(ge=0)] = 0,
        num_ranks: Annotated[int, Field(ge=1)] = 1,
    ) -> None:
        if not len(factors) or not (factors >= 1).all():
            found = f"the least is {float(factors.min())}" if len(factors) else "there are none"
            raise ValueError(f"factors must be at least one number >= 1, {found}")
        super().__init__(seed, rank, num_ranks)
        self._whole = factors.trunc().to(torch.int64)
        self._fraction = factors - self._whole

    def _draw(self, generator: torch.Generator) -> Tensor:
        # 1. round each factor up with the probability of its fraction, so that its mean is kept:
        #    n(i) = floor(r(i)) + [u < r(i) - floor(r(i))]
        drawn = torch.rand(len(self._fraction), generator=generator, dtype=torch.float64)
        repeats = self._whole + (drawn < self._fraction)
        # 2. write each image down n(i) times, and shuffle
        indices = torch.repeat_interleave(torch.arange(len(repeats)), repeats)
        return indices[torch.randperm(len(indices), generator=generator)]


class ClassAwareSampler(EpochSampler):
    """Classes come in turn, each as often as any other, and each gives its images in turn.

    An epoch has as many entries as there are images; of two classes, one may come once more. An image of
    several classes comes for each of them, an image without an instance never.

    Args:
        image_categories: the classes of each image.
        seed: fixes the order.
        rank: of this process, in ``0 .. num_ranks - 1``.
        num_ranks: number of processes that share the epoch.

    Raises:
        ValueError: if no image shows a class, or ``rank`` is out of range.

    Source:
        Shen et al., "Relay Backpropagation", arXiv:1512.05830, section 3 (class-aware sampling).
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        *,
        image_categories: Sequence[Sequence[int]],
        seed: int = 0,
        rank: Annotated[int, Field(ge=0)] = 0,
        num_ranks: Annotated[int, Field(ge=1)] = 1,
    ) -> None:
        super().__init__(seed, rank, num_ranks)
        images: dict[int, list[int]] = {}
        for index, categories in enumerate(image_categories):
            for category in set(categories):
                images.setdefault(category, []).append(index)
        if not images:
            raise ValueError(
                f"class-aware sampling needs an instance, {len(image_categories)} images have none"
            )
        self._images = [torch.tensor(images[category]) for category in sorted(images)]
        self._length = len(image_categories)

    def _draw(self, generator: torch.Generator) -> Tensor:
        # 1. a class for each entry: rounds of all classes, each round in another order
        classes = _shuffled_rounds(torch.arange(len(self._images)), self._length, generator)
        # 2. the images of each class, in rounds as well, in the places where it came
        counts = torch.bincount(classes, minlength=len(self._images)).tolist()
        chosen = [_shuffled_rounds(i, n, generator) for i, n in zip(self._images, counts, strict=True)]
        indices = torch.empty(self._length, dtype=torch.int64)
        indices[classes.argsort(stable=True)] = torch.cat(chosen)
        return indices


def mix_frequencies(
    real: Mapping[int, float], synthetic: Mapping[int, float], synthetic_ratio: float
) -> dict[int, float]:
    """Return the share of all images, real and synthetic, that show a class, of the classes in ``real``.

    Args:
        real: share of the real images, by class.
        synthetic: share of the synthetic images, by class; a class that is not there has none.
        synthetic_ratio: share of synthetic images among all, in [0, 1).

    Returns:
        The shares by class.

    Source:
        Xie et al., "MosaicFusion", arXiv:2309.13042, merges the annotations before repeat factors are taken.

    Example:
        >>> mix_frequencies({1: 0.5, 2: 0.1}, {2: 0.5}, synthetic_ratio=0.25)
        {1: 0.375, 2: 0.2}
    """
    return {
        category: (1 - synthetic_ratio) * frequency + synthetic_ratio * synthetic.get(category, 0.0)
        for category, frequency in real.items()
    }


def build_sampler(
    image_categories: Sequence[Sequence[int]],
    *,
    sampling: Literal["repeat_factor", "class_aware"],
    repeat_threshold: float,
    synthetic_frequencies: Mapping[int, float] | None = None,
    synthetic_ratio: float = 0.0,
    **place: int,
) -> EpochSampler:
    """Build the sampler that the config names.

    Args:
        image_categories: the classes of each image.
        sampling: by repeat factors, or by classes in turn.
        repeat_threshold: of :func:`repeat_factors`; 0 repeats nothing.
        synthetic_frequencies: share of the synthetic images that show a class; with it the repeat factors are
            those of real and synthetic images together.
        synthetic_ratio: share of synthetic images among all.
        **place: ``seed``, ``rank`` and ``num_ranks``.

    Returns:
        The sampler.
    """
    if sampling == "class_aware":
        return ClassAwareSampler(image_categories=image_categories, **place)
    frequencies = category_frequencies(image_categories)
    if synthetic_frequencies is not None:
        frequencies = mix_frequencies(frequencies, synthetic_frequencies, synthetic_ratio)
    factors = repeat_factors(frequencies, image_categories, repeat_threshold)
    return RepeatFactorSampler(factors=factors, **place)


def _shuffled_rounds(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` of the values: all of them in a random order, then all in another one, and so on."""
    rounds = -(-count // len(values))
    order = torch.rand(rounds, len(values), generator=generator, dtype=torch.float64).argsort(dim=1)
    return values[order.flatten()[:count]]
