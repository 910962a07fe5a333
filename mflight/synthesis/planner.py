"""Which classes to draw next, and where on the canvas. No torch, no state but the seed."""

import random
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, validate_call

from mflight.data.categories import Categories, Category, Frequency
from mflight.functional.layout import draw_layout
from mflight.synthesis.prompts import PromptBuilder
from mflight.synthesis.request import MosaicRequest
from mflight.synthesis.signals import Demand

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class CategoryPlanner:
    """Orders mosaics; a request is a function of the seed, its index and the demand, and of nothing else.

    So any worker may be stopped, started again or replaced without a request that is lost or drawn twice.

    ``published`` takes the classes of ``main_frequency`` in turn, shuffled anew every round, as the main
    class of a canvas, draws its partners uniformly from all classes with replacement, and shuffles them.
    ``inverse_frequency`` draws the class of every region from all classes with a weight of
    ``1 / max(1, image_count)``.

    Args:
        categories: all classes of the dataset.
        prompt_builder: writes the prompts.
        rule: how classes are chosen.
        main_frequency: the classes that ``published`` takes in turn.
        num_regions: the choices of regions per canvas; one is drawn for each canvas.
        region_hw: ``(H, W)`` of the base region, in pixels.
        overlap_hw: ``(height, width)`` shared by neighbouring regions, in pixels.
        center_ratio_range: the mosaic's centre lies at ``U(low, high)`` times the base region's size.
        stride_px: pixels per latent cell.
        center_grid_px: the centre is rounded down to a multiple of this; None means ``stride_px``.
        seed: of all draws.

    Raises:
        ValueError: if no class has ``main_frequency`` under ``published``.

    Source:
        Xie et al., "MosaicFusion", arXiv:2309.13042, and its published program (rule, order of the draws).
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        categories: Categories,
        prompt_builder: PromptBuilder,
        rule: Literal["published", "inverse_frequency"] = "published",
        main_frequency: Frequency = "rare",
        num_regions: Annotated[Sequence[Literal[1, 2, 4]], Field(min_length=1)] = (4,),
        region_hw: tuple[PositiveInt, PositiveInt] = (384, 512),
        overlap_hw: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (48, 64),
        center_ratio_range: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.25),
        stride_px: PositiveInt = 8,
        center_grid_px: PositiveInt | None = None,
        seed: int = 0,
    ):
        self._categories, self._prompt_builder, self._rule, self._seed = (
            categories,
            prompt_builder,
            rule,
            seed,
        )
        self._num_regions = tuple(num_regions)
        self._layout_settings = {
            "region_hw": region_hw,
            "overlap_hw": overlap_hw,
            "center_ratio_range": center_ratio_range,
            "stride_px": stride_px,
            "center_grid_px": center_grid_px,
        }
        self._main_categories = categories.with_frequency(main_frequency)
        if rule == "published" and not self._main_categories:
            raise ValueError(f"rule 'published' needs a {main_frequency} class, none of {len(categories)} is")
        self._weights = [1.0 / max(1, category.image_count) for category in categories]

    def request_id(self, index: int) -> str:
        """Return the id of the request at ``index``, which is that of the sample it will give."""
        return f"{self._seed}-{index:08d}"

    def request(self, index: int, demand: Demand | None = None) -> MosaicRequest:
        """Order one mosaic.

        Args:
            index: place in the sequence, from 0.
            demand: what the trainer wants; the rules so far only note its step.

        Returns:
            The complete order, the same for the same arguments.
        """
        draws = random.Random(f"{self._seed}/request/{index}")
        count = draws.choice(self._num_regions)
        chosen = self._choose(index, count, draws)
        layout = draw_layout(num_regions=count, draws=draws, **self._layout_settings)
        return MosaicRequest(
            request_id=self.request_id(index),
            index=index,
            category_ids=tuple(category.category_id for category in chosen),
            names=tuple(category.name for category in chosen),
            prompts=self._prompt_builder.build(chosen, draws),
            layout=layout,
            noise_seed=draws.getrandbits(31),
            demand_step=demand.step if demand else 0,
        )

    def _choose(self, index: int, count: int, draws: random.Random) -> list[Category]:
        if self._rule == "inverse_frequency":
            return draws.choices(self._categories, self._weights, k=count)
        chosen = [self._main_category(index), *(draws.choice(self._categories) for _ in range(count - 1))]
        draws.shuffle(chosen)
        return chosen

    def _main_category(self, index: int) -> Category:
        turn, place = divmod(index, len(self._main_categories))
        order = list(self._main_categories)
        random.Random(f"{self._seed}/round/{turn}").shuffle(order)
        return order[place]
