"""Which classes to draw next, and where on the canvas. No torch, no state but the seed."""

import random
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, validate_call

from mflight.data.categories import FREQUENCIES, Categories, Category, Frequency
from mflight.functional.layout import MosaicLayout, draw_grid_layout, draw_layout
from mflight.synthesis.prompts import PromptBuilder
from mflight.synthesis.request import MosaicRequest

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
GuidanceScale = Annotated[float, Field(ge=0.0)]
Grid = tuple[PositiveInt, PositiveInt]


class CategoryPlanner:
    """Orders mosaics; a request is a function of the seed and its index, and of nothing else.

    So any worker may be stopped, started again or replaced without a request that is lost or drawn twice.

    ``published`` takes the classes of ``main_frequencies`` in turn, shuffled anew every round, as the main
    class of a canvas, draws its partners uniformly from the classes of ``partner_frequencies`` with
    replacement, and shuffles them. ``inverse_frequency`` has no main class: it draws every region as a
    partner, with a weight of ``1 / max(1, image_count)``.

    Args:
        categories: all classes of the dataset.
        prompt_builder: writes the prompts.
        rule: how classes are chosen.
        main_frequencies: the classes that ``published`` takes in turn; ``[rare]``, as published, or more.
        partner_frequencies: the classes that partners are drawn from; all, as published, or fewer.
        num_regions: the published choices of regions per canvas; one of these and of ``grids`` is drawn for
            each canvas.
        grids: further choices, each ``(rows, columns)``.
        region_hw: ``(H, W)`` of the base region, in pixels.
        overlap_hw: ``(height, width)`` shared by neighbouring regions, in pixels.
        center_ratio_range: the mosaic's centre lies at ``U(low, high)`` times the base region's size.
        stride_px: pixels per latent cell.
        center_grid_px: lines between regions lie on multiples of this; None means ``stride_px``.
        negative_prompts: texts that guidance leads away from; one is drawn for each region. None means "",
            as published.
        guidance_scale_range: a guidance scale is drawn uniformly from it for each region; equal bounds draw
            nothing. None leaves the scale to the synthesizer.
        requests_per_layout: so many consecutive requests share the drawn lines of their layout, so that their
            regions are of equal shapes and fill the UNet's batches; 1 draws anew for each, as published.
        seed: of all draws.

    Raises:
        ValueError: if there is no choice of regions, if ``guidance_scale_range`` falls, if no class is of
            ``partner_frequencies``, or if none is of ``main_frequencies`` under ``published``.

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
        main_frequencies: Sequence[Frequency] = ("rare",),
        partner_frequencies: Sequence[Frequency] = FREQUENCIES,
        num_regions: Sequence[Literal[1, 2, 4]] = (4,),
        grids: Sequence[Grid] = (),
        region_hw: tuple[PositiveInt, PositiveInt] = (384, 512),
        overlap_hw: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (48, 64),
        center_ratio_range: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.25),
        stride_px: PositiveInt = 8,
        center_grid_px: PositiveInt | None = None,
        negative_prompts: Sequence[str] = (),
        guidance_scale_range: tuple[GuidanceScale, GuidanceScale] | None = None,
        requests_per_layout: PositiveInt = 1,
        seed: int = 0,
    ):
        self.categories = categories
        self._prompt_builder, self._rule, self._seed = prompt_builder, rule, seed
        self._region_choices: tuple[int | Grid, ...] = (*num_regions, *grids)
        self._negative_prompts, self._guidance_scale_range = tuple(negative_prompts), guidance_scale_range
        self._layout_settings = {
            "region_hw": region_hw,
            "overlap_hw": overlap_hw,
            "center_ratio_range": center_ratio_range,
            "stride_px": stride_px,
            "center_grid_px": center_grid_px,
        }
        self._requests_per_layout = requests_per_layout
        self._mains = tuple(one for one in categories if one.frequency in main_frequencies)
        self._partners = tuple(one for one in categories if one.frequency in partner_frequencies)
        self._partner_weights = [1.0 / max(1, partner.image_count) for partner in self._partners]
        if not self._region_choices:
            raise ValueError(
                f"num_regions and grids must hold one choice at least, got {num_regions} and {grids}"
            )
        if guidance_scale_range is not None and guidance_scale_range[0] > guidance_scale_range[1]:
            raise ValueError(f"guidance_scale_range must rise, got {guidance_scale_range}")
        if not self._partners:
            raise ValueError(f"no class is of partner_frequencies={list(partner_frequencies)}: {categories}")
        if rule == "published" and not self._mains:
            raise ValueError(
                f"no class is of main_frequencies={list(main_frequencies)}: {categories}. Name others "
                "(synthesis.planner.main_frequencies=[common]), or synthesis.planner.rule=inverse_frequency"
            )

    @property
    def wanted_categories(self) -> tuple[Category, ...]:
        """The classes that it may ask for, in label order."""
        mains = self._mains if self._rule == "published" else ()
        return tuple(one for one in self.categories if one in mains or one in self._partners)

    def request_id(self, index: int) -> str:
        """Return the id of the request at ``index``, which is that of the sample it will give."""
        return f"{self._seed}-{index:08d}"

    def request(self, index: int) -> MosaicRequest:
        """Order one mosaic.

        Args:
            index: place in the sequence, from 0.

        Returns:
            The complete order, the same for the same index.
        """
        draws = random.Random(f"{self._seed}/request/{index}")
        regions = draws.choice(self._region_choices)
        count = regions if isinstance(regions, int) else regions[0] * regions[1]
        chosen = self._choose(index, count, draws)
        layout = self._lay_out(regions, self._layout_draws(index, draws))
        return MosaicRequest(
            request_id=self.request_id(index),
            index=index,
            category_ids=tuple(category.category_id for category in chosen),
            names=tuple(category.name for category in chosen),
            prompts=self._prompt_builder.build(chosen, draws),
            layout=layout,
            noise_seed=draws.getrandbits(31),
            negative_prompts=self._draw_negative_prompts(count, draws),
            guidance_scales=self._draw_guidance_scales(count, draws),
        )

    def _layout_draws(self, index: int, draws: random.Random) -> random.Random:
        if self._requests_per_layout == 1:
            return draws
        return random.Random(f"{self._seed}/layout/{index // self._requests_per_layout}")

    def _lay_out(self, regions: int | Grid, draws: random.Random) -> MosaicLayout:
        if isinstance(regions, int):
            return draw_layout(num_regions=regions, draws=draws, **self._layout_settings)
        return draw_grid_layout(grid=regions, draws=draws, **self._layout_settings)

    def _draw_negative_prompts(self, count: int, draws: random.Random) -> tuple[str, ...]:
        if len(self._negative_prompts) < 2:
            return self._negative_prompts * count
        return tuple(draws.choice(self._negative_prompts) for _ in range(count))

    def _draw_guidance_scales(self, count: int, draws: random.Random) -> tuple[float, ...]:
        if self._guidance_scale_range is None:
            return ()
        low, high = self._guidance_scale_range
        return tuple(low if low == high else draws.uniform(low, high) for _ in range(count))

    def _choose(self, index: int, count: int, draws: random.Random) -> list[Category]:
        if self._rule == "inverse_frequency":
            return draws.choices(self._partners, self._partner_weights, k=count)
        chosen = [self._main_category(index), *(draws.choice(self._partners) for _ in range(count - 1))]
        draws.shuffle(chosen)
        return chosen

    def _main_category(self, index: int) -> Category:
        turn, place = divmod(index, len(self._mains))
        order = list(self._mains)
        random.Random(f"{self._seed}/round/{turn}").shuffle(order)
        return order[place]
