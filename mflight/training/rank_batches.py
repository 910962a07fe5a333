"""The training batches of one rank, resumable on all of them."""

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from mflight.data.mixing import MixedBatches


class RankBatches:
    """Hands out a rank's batches, and keeps the places of all ranks in one state.

    Lightning asks every rank for its state but writes and reads rank 0's alone, and the ranks differ in the
    samples they have used. So the state holds a place for each rank, and each finds its own again.

    Args:
        batches: of this rank.
    """

    def __init__(self, batches: MixedBatches):
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """Return where each rank stands; all ranks call it together."""
        return {"ranks": gather_from_ranks(self._batches.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from this rank's place.

        Args:
            state: from ``state_dict``.

        Raises:
            ValueError: if it was taken with another number of ranks.
        """
        rank, world_size = rank_and_world_size()
        if len(state["ranks"]) != world_size:
            raise ValueError(
                f"a run of {len(state['ranks'])} training ranks must be resumed with as many, "
                f"got {world_size}"
            )
        self._batches.load_state_dict(state["ranks"][rank])


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the training ranks; all of them call it together."""
    if rank_and_world_size()[1] > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_from_ranks(value: Any) -> list[Any]:
    """Return what each rank has given, in order; all ranks call it together.

    Args:
        value: of this rank; it can be pickled.

    Returns:
        the values of all ranks, the same list on each.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    values = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of training processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
