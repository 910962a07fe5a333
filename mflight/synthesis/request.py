"""What to draw: the complete and serialisable order for one mosaic."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mflight.functional.layout import MosaicLayout

Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """The text of one region, and where the class is named in it.

    Attributes:
        text: what the text encoder reads.
        name_span: ``(start, end)`` character offsets of the class name in ``text``; its tokens are attended.
        definition_span: offsets of the part that may be shortened when the text encoder's length is exceeded;
            ``None`` shortens the end of the text.

    Raises:
        ValueError: if a span is empty or leaves the text.
    """

    text: str
    name_span: Span
    definition_span: Span | None = None

    def __post_init__(self):
        for field in ("name_span", "definition_span"):
            span = getattr(self, field)
            if span is not None and not 0 <= span[0] < span[1] <= len(self.text):
                raise ValueError(
                    f"{field} must satisfy 0 <= start < end <= {len(self.text)}, got {span} in {self.text!r}"
                )

    @property
    def name(self) -> str:
        """The class as it is named in the text."""
        return self.text[slice(*self.name_span)]


@dataclass(frozen=True)
class MosaicRequest:
    """All that determines one mosaic, given a checkpoint and the synthesizer's settings.

    Attributes:
        request_id: unique name of the sample that will come of it.
        index: place in the planner's sequence.
        category_ids: LVIS category of each region.
        names: LVIS name of each region's category.
        prompts: one a region.
        layout: canvas and regions, in pixels.
        noise_seed: seed of the noise canvas, in ``[0, 2^63)``.
        negative_prompts: one a region, or empty for ``""`` everywhere.
        guidance_scales: one a region, or empty for the synthesizer's own.

    Raises:
        ValueError: if a field does not hold one entry a region, or if the seed is out of range.
    """

    request_id: str
    index: int
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    layout: MosaicLayout
    noise_seed: int
    negative_prompts: tuple[str, ...] = ()
    guidance_scales: tuple[float, ...] = ()

    def __post_init__(self):
        num_regions = len(self.layout.region_boxes)
        for field in ("category_ids", "names", "prompts"):
            self._check_length(field, num_regions)
        for field in ("negative_prompts", "guidance_scales"):
            if getattr(self, field):
                self._check_length(field, num_regions)
        if not 0 <= self.noise_seed < 2**63:
            raise ValueError(f"noise_seed must lie in [0, 2^63), got {self.noise_seed}")

    def _check_length(self, field: str, num_regions: int) -> None:
        count = len(getattr(self, field))
        if count != num_regions:
            raise ValueError(
                f"{field} must hold one entry for each of the {num_regions} regions, got {count}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON types; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "MosaicRequest":
        """Read a request written by ``to_dict``, also after a way through JSON.

        Args:
            fields: the written request; the ``demand_step`` that older pools have in it is passed over.

        Returns:
            An equal request.
        """
        fields = {key: value for key, value in fields.items() if key != "demand_step"}
        prompts = tuple(Prompt(**_with_tuples(prompt)) for prompt in fields.pop("prompts"))
        layout = MosaicLayout(**_with_tuples(fields.pop("layout")))
        return cls(prompts=prompts, layout=layout, **_with_tuples(fields))


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same mapping with every list, at any depth, as a tuple."""

    def to_tuple(value: Any) -> Any:
        return tuple(to_tuple(item) for item in value) if isinstance(value, list | tuple) else value

    return {key: to_tuple(value) for key, value in fields.items()}
