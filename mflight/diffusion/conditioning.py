"""From the texts of regions to what the UNet is told of them: one class for each family of text towers."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast

from mflight.diffusion.tokens import PromptText, TokenRule, tokenize_plain, tokenize_prompt

MAX_REMEMBERED_TEXTS = 256
TokenIds = tuple[tuple[int, ...], ...]  # one row of T ids for each tower


@dataclass(frozen=True)
class TextCondition:
    """What the UNet is told of one text, in the model's precision and on its device.

    Attributes:
        prompt_embeds: ``[T, D]``, one embedding a token; cross-attention reads them.
        pooled_prompt_embeds: ``[P]``, the text as a whole; ``None`` where the family has no such thing.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None = None


class TextConditioner(ABC):
    """Text towers of one family, each with its tokenizer.

    Each text is encoded by itself, so that it never depends on what else is drawn, and remembered. No
    attention mask is used.

    Attributes:
        TOKENIZER_FOLDERS: where the tokenizers lie in a checkpoint.
        TOWERS: class of each tower, by its folder in a checkpoint.

    Args:
        tokenizers: fast CLIP tokenizers, one a tower.
        text_encoders: the towers.

    Raises:
        ValueError: if a tokenizer has more tokens than its tower has embeddings.
    """

    TOKENIZER_FOLDERS: ClassVar[tuple[str, ...]]
    TOWERS: ClassVar[Mapping[str, type[torch.nn.Module]]]

    def __init__(self, tokenizers: Sequence[CLIPTokenizerFast], text_encoders: Sequence[torch.nn.Module]):
        self.tokenizers = tuple(tokenizers)
        self.text_encoders = tuple(text_encoders)
        self._condition_of_ids: OrderedDict[TokenIds, TextCondition] = OrderedDict()
        for folder, tokenizer, tower in zip(self.TOKENIZER_FOLDERS, tokenizers, text_encoders, strict=True):
            if len(tokenizer) > tower.config.vocab_size:
                raise ValueError(
                    f"{folder} must have at most as many tokens as its text encoder has embeddings, "
                    f"{tower.config.vocab_size}, got {len(tokenizer)}"
                )

    @classmethod
    def from_towers(
        cls, folder: Path, index: Mapping[str, Any], towers: Sequence[torch.nn.Module]
    ) -> "TextConditioner":
        """Load the tokenizers of towers.

        Args:
            folder: the checkpoint.
            index: its ``model_index.json``.
            towers: its towers, in the order of ``TOWERS``.

        Returns:
            The conditioner.
        """
        return cls(
            [CLIPTokenizerFast.from_pretrained(folder / name) for name in cls.TOKENIZER_FOLDERS], towers
        )

    @property
    def width(self) -> int:
        """Width of the token embeddings that cross-attention reads."""
        return sum(tower.config.hidden_size for tower in self.text_encoders)

    @property
    def max_prompt_tokens(self) -> int:
        """Length of the towers' input, begin and end tokens included: 77 for CLIP."""
        lengths = [tokenizer.model_max_length for tokenizer in self.tokenizers]
        return min(*lengths, *(tower.config.max_position_embeddings for tower in self.text_encoders))

    def encode_prompt(
        self, prompt: PromptText, rule: TokenRule = "name"
    ) -> tuple[TextCondition, tuple[int, ...]]:
        """Encode a prompt, and find the tokens of the class name in it.

        Args:
            prompt: the text and its spans.
            rule: which tokens are attended; see ``mflight.diffusion.tokens.tokenize_prompt``.

        Returns:
            The condition, and the places of the attended tokens, the same ones for every tower.

        Raises:
            ValueError: if the tokenizers put the name at different places; a name that is lost is a
                ``LostNameError``, which is a ValueError too.
        """
        tokenized = [
            tokenize_prompt(tokenizer, prompt, max_length=self.max_prompt_tokens, rule=rule)
            for tokenizer in self.tokenizers
        ]
        places = tokenized[0].attended_tokens
        for other in tokenized[1:]:
            if other.attended_tokens != places:
                raise ValueError(
                    f"the name must have the same token places in both tokenizers, got {places} and "
                    f"{other.attended_tokens} in {prompt.text!r}"
                )
        return self._recall(tuple(prompt.input_ids for prompt in tokenized)), places

    def encode_negative(self, text: str) -> TextCondition:
        """Encode what guidance leads away from; ``""`` is nothing in particular."""
        return self._recall(
            tuple(
                tokenize_plain(tokenizer, text, max_length=self.max_prompt_tokens)
                for tokenizer in self.tokenizers
            )
        )

    @abstractmethod
    def added_cond_kwargs(
        self, conditions: Sequence[TextCondition], region_hw: tuple[int, int]
    ) -> dict[str, Tensor] | None:
        """What the UNet is told besides the token embeddings.

        Args:
            conditions: one a sample of the UNet's batch.
            region_hw: ``(H, W)`` in pixels of the regions in the batch.

        Returns:
            The UNet's argument of this name; ``None`` where the family has none.
        """

    @abstractmethod
    def _encode(self, batches: Sequence[Tensor]) -> TextCondition:
        """Run the towers on one text, ``int64[1, T]`` for each."""

    @torch.inference_mode()
    def _recall(self, ids: TokenIds) -> TextCondition:
        if ids not in self._condition_of_ids:
            batches = [
                torch.tensor([row], device=tower.device)
                for row, tower in zip(ids, self.text_encoders, strict=True)
            ]
            self._condition_of_ids[ids] = self._encode(batches)
            if len(self._condition_of_ids) > MAX_REMEMBERED_TEXTS:
                self._condition_of_ids.popitem(last=False)
        self._condition_of_ids.move_to_end(ids)
        return self._condition_of_ids[ids]


class SingleTowerConditioner(TextConditioner):
    """Stable Diffusion 1.x (CLIP) and 2.x (OpenCLIP): the last hidden state of one tower.

    Attributes:
        TOKENIZER_FOLDERS: where the tokenizer lies in a checkpoint.
        TOWERS: class of the tower, by its folder in a checkpoint.
    """

    TOKENIZER_FOLDERS: ClassVar[tuple[str, ...]] = ("tokenizer",)
    TOWERS: ClassVar[Mapping[str, type[torch.nn.Module]]] = {"text_encoder": CLIPTextModel}

    def added_cond_kwargs(
        self, conditions: Sequence[TextCondition], region_hw: tuple[int, int]
    ) -> dict[str, Tensor] | None:
        """Nothing: this family's UNet reads the token embeddings alone."""
        return None

    def _encode(self, batches: Sequence[Tensor]) -> TextCondition:
        return TextCondition(self.text_encoders[0](batches[0]).last_hidden_state[0])


class DoubleTowerConditioner(TextConditioner):
    """Stable Diffusion XL: two towers' penultimate hidden states side by side, and the second's pooled text.

    Attributes:
        TOKENIZER_FOLDERS: where the tokenizers lie in a checkpoint.
        TOWERS: classes of the towers, by their folders in a checkpoint.
        zeros_for_empty: whether the empty negative prompt is all zeros instead of an encoded "", as the
            checkpoint was trained (``force_zeros_for_empty_prompt`` in its index).

    Args:
        tokenizers: those of the CLIP and of the OpenCLIP tower; they pad differently.
        text_encoders: both towers, the second with its projection.

    Raises:
        ValueError: if the tokenizers have different vocabularies: what the towers make of a token would then
            not stand side by side.

    Source:
        Podell et al., "SDXL", arXiv:2307.01952, sections 2.1 and 2.2.
    """

    TOKENIZER_FOLDERS: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")
    TOWERS: ClassVar[Mapping[str, type[torch.nn.Module]]] = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }

    zeros_for_empty: bool = True

    def __init__(self, tokenizers: Sequence[CLIPTokenizerFast], text_encoders: Sequence[torch.nn.Module]):
        super().__init__(tokenizers, text_encoders)
        first, second = (tokenizer.get_vocab() for tokenizer in tokenizers)
        differing = sorted(token for token, _ in first.items() ^ second.items())
        if differing:
            raise ValueError(
                f"both tokenizers of a checkpoint must share one vocabulary, they differ at {differing[0]!r}"
            )

    @classmethod
    def from_towers(
        cls, folder: Path, index: Mapping[str, Any], towers: Sequence[torch.nn.Module]
    ) -> "DoubleTowerConditioner":
        """Load the tokenizers, and learn what an empty prompt is."""
        conditioner = super().from_towers(folder, index, towers)
        conditioner.zeros_for_empty = index.get("force_zeros_for_empty_prompt", True)
        return conditioner

    def encode_negative(self, text: str) -> TextCondition:
        """Encode what guidance leads away from; zeros for ``""`` where the checkpoint wants them."""
        condition = super().encode_negative(text)
        if text or not self.zeros_for_empty:
            return condition
        return TextCondition(
            torch.zeros_like(condition.prompt_embeds), torch.zeros_like(condition.pooled_prompt_embeds)
        )

    def added_cond_kwargs(
        self, conditions: Sequence[TextCondition], region_hw: tuple[int, int]
    ) -> dict[str, Tensor] | None:
        """The pooled texts and the time ids (original size, crop, target size).

        A region counts as a whole picture of its own size, not as a part of the canvas: that is what its
        crop of the latents is to the UNet. SDXL learned the original size as a sign of quality and the crop
        as a sign of how much is cut off at the top and left; ``(0, 0)`` asks for an object that is whole and
        in the middle, which is what the mask of a region needs.

        Args:
            conditions: one a sample of the UNet's batch.
            region_hw: ``(H, W)`` in pixels of the regions in the batch.

        Returns:
            ``text_embeds`` ``[B, P]`` and ``time_ids`` ``float32[B, 6]``.
        """
        pooled = torch.stack([condition.pooled_prompt_embeds for condition in conditions])
        time_ids = torch.tensor([*region_hw, 0.0, 0.0, *region_hw], device=pooled.device)
        return {"text_embeds": pooled, "time_ids": time_ids.repeat(len(conditions), 1)}

    def _encode(self, batches: Sequence[Tensor]) -> TextCondition:
        outputs = [
            tower(batch, output_hidden_states=True)
            for tower, batch in zip(self.text_encoders, batches, strict=True)
        ]
        penultimate = torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1)
        return TextCondition(penultimate, outputs[1].text_embeds[0])
