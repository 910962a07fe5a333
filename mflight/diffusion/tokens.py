"""From a prompt to the token ids that the text encoder reads and the tokens whose attention is kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

TokenRule = Literal["name", "head_noun", "last", "published"]
Span = tuple[int, int]


class LostNameError(ValueError):
    """The name of a class does not fit into what the text encoder reads: such a prompt cannot be drawn."""


class PromptText(Protocol):
    """What is read of a prompt; ``mflight.synthesis.request.Prompt`` is one. Spans are character offsets."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def name_span(self) -> Span: ...  # noqa: D102
    @property
    def definition_span(self) -> Span | None: ...  # noqa: D102


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text encoder reads it.

    Attributes:
        input_ids: token ids, begin and end tokens included, padded to the text encoder's length.
        attended_tokens: places in ``input_ids`` (the begin token is 0) whose attention maps are kept.
    """

    input_ids: tuple[int, ...]
    attended_tokens: tuple[int, ...]


def tokenize_prompt(
    tokenizer: Any, prompt: PromptText, *, max_length: int, rule: TokenRule = "name"
) -> TokenizedPrompt:
    """Cut and pad a prompt to the text encoder's length, and find the tokens of the class name in it.

    A prompt that is too long loses the last tokens of its definition, then those of its end, never one of
    its name. The name's tokens are found by character offsets, so a piece that occurs earlier in the prompt
    (`spatula` after "a", `computer_monitor`) cannot be mistaken for it. A token counts if it holds a letter
    or digit of the name: a token that is only ``(``, ``-``, or ``)`` joined with the comma that follows, is
    punctuation and is left out.

    Args:
        tokenizer: a fast CLIP tokenizer.
        prompt: the text and its spans.
        max_length: the text encoder's length in tokens, begin and end tokens included.
        rule: ``"name"`` attends to all tokens of the name; ``"head_noun"`` to those of the last word before
            its parentheses (``bat`` of ``bat (animal)``, ``monitor`` of ``computer monitor``); ``"last"`` to
            the last one; ``"published"`` to the first occurrence of the last piece anywhere in the prompt,
            which conformance tests alone want.

    Returns:
        The token ids, ``max_length`` of them, and the attended places in ascending order.

    Raises:
        LostNameError: if the name does not fit into ``max_length`` tokens, or has none.
    """
    encoding = tokenizer(prompt.text, return_offsets_mapping=True, verbose=False)
    begin_id, *ids, end_id = encoding["input_ids"]
    offsets = [tuple(span) for span in encoding["offset_mapping"][1:-1]]
    kept = _kept_tokens(offsets, prompt.definition_span, budget=max_length - 2)
    if rule == "published":
        wanted = [_published_token(tokenizer, ids, prompt)]
    else:
        wanted = _name_tokens(prompt.text, offsets, _span_of_rule(prompt, rule))
        wanted = wanted[-1:] if rule == "last" else wanted
    if not wanted or not set(wanted) <= set(kept):
        name, places = prompt.text[slice(*prompt.name_span)], [place + 1 for place in wanted]
        raise LostNameError(
            f"the name must have its tokens among the text encoder's {max_length}, "
            f"got places {places} for {name!r} in {prompt.text!r}"
        )
    cut_ids = [begin_id, *(ids[place] for place in kept), end_id]
    padding = [tokenizer.pad_token_id] * (max_length - len(cut_ids))
    return TokenizedPrompt(tuple(cut_ids + padding), tuple(kept.index(place) + 1 for place in wanted))


def tokenize_plain(tokenizer: Any, text: str, *, max_length: int) -> tuple[int, ...]:
    """Token ids of a text without a name (a negative prompt), cut at its end and padded to ``max_length``."""
    begin_id, *ids, end_id = tokenizer(text, verbose=False)["input_ids"]
    cut_ids = [begin_id, *ids[: max_length - 2], end_id]
    return tuple(cut_ids + [tokenizer.pad_token_id] * (max_length - len(cut_ids)))


def _kept_tokens(offsets: Sequence[Span], definition_span: Span | None, budget: int) -> list[int]:
    """Places that survive when the text is cut to ``budget`` tokens: the definition's end goes first."""
    excess = max(0, len(offsets) - budget)
    definition = []
    if definition_span is not None:
        start, end = definition_span
        definition = [place for place, (first, last) in enumerate(offsets) if first >= start and last <= end]
    dropped = set(definition[len(definition) - min(excess, len(definition)) :])
    return [place for place in range(len(offsets)) if place not in dropped][:budget]


def _span_of_rule(prompt: PromptText, rule: TokenRule) -> Span:
    """The characters whose tokens are attended."""
    start, end = prompt.name_span
    if rule != "head_noun":
        return start, end
    head = re.match(r"[^(]*?([^(\s]+)\s*(?:\(|$)", prompt.text[start:end])
    return (start + head.start(1), start + head.end(1)) if head else (start, end)


def _name_tokens(text: str, offsets: Sequence[Span], span: Span) -> list[int]:
    """Places of the tokens that hold a letter or digit of the span; any that overlap it where it has none."""
    shared = [text[max(first, span[0]) : min(last, span[1])] for first, last in offsets]
    worded = [place for place, part in enumerate(shared) if any(character.isalnum() for character in part)]
    return worded or [place for place, part in enumerate(shared) if part]


def _published_token(tokenizer: Any, ids: Sequence[int], prompt: PromptText) -> int:
    """First occurrence in the prompt of the last piece of the name, read without any ``)``."""
    name = prompt.text[slice(*prompt.name_span)].replace(")", "")
    last_id = tokenizer(name, verbose=False)["input_ids"][-2]
    return list(ids).index(last_id)
