"""Keep the attention that a UNet pays to chosen tokens, while it denoises at full speed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from mflight.diffusion.tokens import TokenRule

UNetBlock = Literal["down", "mid", "up"]


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """Whose attention is kept, and which of it.

    Attributes:
        token_rule: which tokens of a prompt are attended; see ``mflight.diffusion.tokens``.
        blocks: UNet blocks whose cross-attention counts.
        levels: resolutions that count, as the number of halvings of the region's latents: 0 is their own
            size, 1 half of it, rounded up. A level without any cross-attention is skipped.
        first_evaluation: first UNet evaluation that counts, from 0.
        stop_evaluation: first evaluation that counts no more; ``None`` counts all to the end. The published
            program stops at 50 of PNDM's 51.

    Raises:
        ValueError: if no evaluation can count.
    """

    token_rule: TokenRule = "name"
    blocks: Annotated[tuple[UNetBlock, ...], Field(min_length=1)] = ("down", "up")
    levels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    first_evaluation: Annotated[int, Field(ge=0)] = 0
    stop_evaluation: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self):
        if self.stop_evaluation is not None and self.stop_evaluation <= self.first_evaluation:
            raise ValueError(
                f"stop_evaluation must be above first_evaluation {self.first_evaluation}, "
                f"got {self.stop_evaluation}"
            )

    def counts(self, evaluation: int) -> bool:
        """Whether the attention of the UNet's n-th evaluation, from 0, is kept."""
        return evaluation >= self.first_evaluation and (
            self.stop_evaluation is None or evaluation < self.stop_evaluation
        )


class AttentionAccumulator:
    """Mean attention of regions of one latent shape, summed in place: memory does not grow with the steps.

    Every head of every layer of every evaluation weighs the same. Where a region has several attended
    tokens, their probabilities are averaged.

    Args:
        latent_hw: ``(h, w)`` of the regions, in latent cells.
        token_weights: ``float32[N, T]``; a row holds ``1 / k`` at each of a region's ``k`` tokens.
        levels: resolutions to keep, as the number of halvings.
    """

    def __init__(self, latent_hw: tuple[int, int], token_weights: Tensor, levels: Sequence[int]):
        self._token_weights = token_weights
        self.num_regions = len(token_weights)
        self._size_of_level = {level: halved_size(latent_hw, level) for level in sorted(set(levels))}
        self._sum_of_level: dict[int, Tensor] = {}  # level -> [N, h_s * w_s]
        self._count_of_level: dict[int, int] = {}
        # Of levels that have shrunk to the same number of cells the finest is meant.
        self._level_of_cells = {h * w: level for level, (h, w) in reversed(self._size_of_level.items())}

    def wants(self, num_cells: int) -> bool:
        """Whether attention of queries on a grid of ``num_cells`` is kept."""
        return num_cells in self._level_of_cells

    def add(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Add one layer's attention.

        Args:
            query: ``[N, heads, cells, d]`` of the conditioned half.
            key: ``[N, heads, T, d]``.
            scale: factor of the logits, ``1 / sqrt(d)``.
        """
        level = self._level_of_cells[query.shape[2]]
        logits = (query * scale) @ key.transpose(-1, -2)  # [N, heads, cells, T]
        probabilities = logits.softmax(dim=-1, dtype=torch.float32)
        wanted = (probabilities @ self._token_weights[:, None, :, None]).squeeze(-1)  # [N, heads, cells]
        total = wanted.sum(dim=1)
        if level in self._sum_of_level:
            self._sum_of_level[level] += total
        else:
            self._sum_of_level[level] = total
        self._count_of_level[level] = self._count_of_level.get(level, 0) + query.shape[1]

    def attention_maps(self) -> list[list[Tensor]]:
        """Per region, one ``float32[h_s, w_s]`` map for each level with cross-attention, finest first."""
        per_level = [
            (total / self._count_of_level[level]).unflatten(1, self._size_of_level[level])
            for level, total in sorted(self._sum_of_level.items())
        ]
        return [[maps[region] for maps in per_level] for region in range(self.num_regions)]


class AttentionRecorder:
    """Lets a UNet's cross-attention layers report to an accumulator.

    The output of a layer is that of PyTorch's fused kernel in either case; only while an accumulator listens
    are the probabilities worked out, for the conditioned half alone, and of those the wanted tokens kept.

    Args:
        unet: a diffusers UNet.
        blocks: the blocks that report.
        levels: the resolutions that will be kept, as the number of halvings.

    Raises:
        ValueError: if none of the blocks has cross-attention, or none at any of the levels.
    """

    def __init__(
        self, unet: Any, blocks: Sequence[UNetBlock] = ("down", "up"), levels: Sequence[int] = (0, 1, 2)
    ):
        self._unet = unet
        self._listener: AttentionAccumulator | None = None
        prefixes = tuple(f"{block}_block" for block in blocks)
        cross_attention = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
        self._names = [name for name in cross_attention if name.startswith(prefixes)]
        if not self._names:
            raise ValueError(f"the UNet must have cross-attention in its blocks, {tuple(blocks)} have none")
        present = sorted({_level_of_layer(name, len(unet.down_blocks)) for name in self._names})
        if not set(present) & set(levels):
            raise ValueError(
                f"levels must hold one of {present}, where the UNet's blocks {tuple(blocks)} have "
                f"cross-attention, got {tuple(levels)}"
            )

    @contextmanager
    def installed(self) -> Iterator["AttentionRecorder"]:
        """Put the reporting processors into the UNet for the time of a ``with`` block.

        Yields:
            This recorder.
        """
        before = self._unet.attn_processors
        self._unet.set_attn_processor(before | {name: _ReportingProcessor(self) for name in self._names})
        try:
            yield self
        finally:
            self._unet.set_attn_processor(before)

    @contextmanager
    def reporting_to(self, accumulator: AttentionAccumulator | None) -> Iterator[None]:
        """Send what the UNet attends to within a ``with`` block to ``accumulator``; ``None`` keeps nothing.

        Args:
            accumulator: its regions are the last samples of the UNet's batch.

        Yields:
            Nothing.
        """
        self._listener = accumulator
        try:
            yield
        finally:
            self._listener = None

    @torch.compiler.disable
    def report(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Hand the conditioned samples of one layer to whoever listens; never part of a compiled graph.

        Args:
            query: ``[B, heads, cells, d]``.
            key: ``[B, heads, T, d]``.
            scale: factor of the logits.
        """
        if self._listener is not None and self._listener.wants(query.shape[2]):
            count = self._listener.num_regions
            self._listener.add(query[-count:], key[-count:], scale)


class _ReportingProcessor:
    """Cross-attention as diffusers' ``AttnProcessor2_0``, which also shows its queries and keys."""

    def __init__(self, recorder: AttentionRecorder):
        self._recorder = recorder

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [B, heads, cells or T, d]
            for projected in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if attn.upcast_attention:  # Stable Diffusion 2.1: its logits overflow float16
            self._recorder.report(query.float(), key.float(), attn.scale)
        else:
            self._recorder.report(query, key, attn.scale)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        output = attn.to_out[1](attn.to_out[0](output.transpose(1, 2).flatten(2)))
        if attn.residual_connection:
            output = output + hidden_states
        return output / attn.rescale_output_factor


def halved_size(latent_hw: tuple[int, int], level: int) -> tuple[int, int]:
    """``(h, w)`` after ``level`` halvings, each rounded up, as a UNet's strided convolutions do."""
    return tuple(-(-size // 2**level) for size in latent_hw)  # type: ignore[return-value]


def _level_of_layer(name: str, num_levels: int) -> int:
    """Halvings at which the layer ``name`` works, such as ``up_blocks.1.attentions.0...``."""
    block, index, *_ = name.split(".")
    if block == "down_blocks":
        return int(index)
    return num_levels - 1 - int(index) if block == "up_blocks" else num_levels - 1
