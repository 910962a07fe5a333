"""From categories to the text of each region."""

import random
from collections.abc import Sequence
from string import Formatter
from typing import Annotated

from pydantic import ConfigDict, Field, validate_call

from mflight.data.categories import Category
from mflight.synthesis.request import Prompt, Span

PUBLISHED_TEMPLATE = "a photo of a single {name}, {definition}"
TEMPLATE_FIELDS = ("name", "definition", "background")


class PromptBuilder:
    """Writes the prompts of a canvas from templates.

    Every region has its own template and name; the background is one for the whole canvas, so that the
    regions merge into one scene. A class without a definition leaves out the field and the comma before it.
    A template with an unknown or repeated field, without ``{name}``, or with
    ``{background}`` where there is none, is a ``ValueError``.

    Args:
        templates: texts with the fields ``{name}`` (exactly once), ``{definition}`` and ``{background}``
            (at most once each); one is drawn for each region.
        backgrounds: phrases for ``{background}``; one is drawn for each canvas.
        use_synonyms: draw the name from the category's synonyms instead of its LVIS name.

    Source:
        The default template is that of arXiv:2309.13042; the name reads ``_`` as a space.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        templates: Annotated[Sequence[str], Field(min_length=1)] = (PUBLISHED_TEMPLATE,),
        backgrounds: Sequence[str] = (),
        use_synonyms: bool = False,
    ):
        self.templates = tuple(templates)
        self.backgrounds = tuple(backgrounds)
        self.use_synonyms = use_synonyms
        for index, template in enumerate(self.templates):
            self._check_template(index, template)

    def build(self, categories: Sequence[Category], draws: random.Random) -> tuple[Prompt, ...]:
        """Write one prompt for each category of a canvas.

        Draws, in this order and only where there is a choice: the background; then for each region its
        template and its synonym.

        Args:
            categories: the class of each region, in reading order.
            draws: source of the choices.

        Returns:
            One prompt a region.
        """
        background = _choose(self.backgrounds, draws) if self.backgrounds else ""
        return tuple(self._write(category, background, draws) for category in categories)

    def _write(self, category: Category, background: str, draws: random.Random) -> Prompt:
        template = _choose(self.templates, draws)
        name = category.spoken_name
        if self.use_synonyms and category.synonyms:
            name = _choose(tuple(category.synonyms), draws).replace("_", " ")
        values = {"name": name, "definition": category.definition, "background": background}
        text = ""
        spans: dict[str, Span] = {}
        for literal, field, _, _ in Formatter().parse(template):
            text += literal if text else literal.lstrip(" ,")
            if field == "definition" and not category.definition:
                text = text.rstrip(" ,")
            elif field is not None:
                spans[field] = (len(text), len(text) + len(values[field]))
                text += values[field]
        return Prompt(text, spans["name"], spans.get("definition"))

    def _check_template(self, index: int, template: str) -> None:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        for field in fields:
            if field not in TEMPLATE_FIELDS:
                raise ValueError(
                    f"templates[{index}] may hold the fields {TEMPLATE_FIELDS}, got {field!r} in {template!r}"
                )
            if fields.count(field) > 1:
                raise ValueError(f"templates[{index}] must hold {{{field}}} once, got {template!r}")
        if "name" not in fields:
            raise ValueError(f"templates[{index}] must hold {{name}}, got {template!r}")
        if "background" in fields and not self.backgrounds:
            raise ValueError(
                f"templates[{index}] wants a {{background}}, but backgrounds is empty: {template!r}"
            )


def _choose(options: Sequence[str], draws: random.Random) -> str:
    """One of the options; nothing is drawn where there is only one."""
    return options[0] if len(options) == 1 else draws.choice(options)
