"""Which devices and cores train, and which draw."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DeviceChoice = int | Sequence[int] | Literal["auto"]


@dataclass(frozen=True, slots=True)
class DeviceSplit:
    """The outcome of :func:`split_devices`.

    Attributes:
        accelerator: ``"gpu"`` or ``"cpu"``, in Lightning's words.
        trainer_devices: GPU numbers of the trainer's ranks; on a CPU the number of ranks.
        synthesis_devices: torch names of the generators' devices; empty without synthesis.
        trainer_threads: CPU threads of each rank.
        synthesis_threads: CPU threads of each generator.
        shares_gpu: whether both sides work on the host's only GPU.
    """

    accelerator: Literal["gpu", "cpu"]
    trainer_devices: tuple[int, ...] | int
    synthesis_devices: tuple[str, ...]
    trainer_threads: int
    synthesis_threads: int
    shares_gpu: bool = False


def split_devices(
    *,
    num_gpus: int,
    num_cores: int,
    global_batch_size: int,
    needs_synthesis: bool,
    trainer_devices: DeviceChoice = "auto",
    synthesis_devices: Sequence[str] | Literal["auto"] = "auto",
) -> DeviceSplit:
    """Divide GPUs and cores between training and synthesis.

    With ``auto`` the trainer takes the most GPUs whose number divides the global batch, of those that are not
    named for drawing, and leaves at least one to draw; the generators take what is left. With one GPU both
    sides share it: how, is for the caller to say. Without a GPU both run on the CPU and halve its cores.

    Args:
        num_gpus: GPUs of this host.
        num_cores: CPU cores that this process may use.
        global_batch_size: images a step, over all ranks.
        needs_synthesis: whether anything is to be drawn.
        trainer_devices: a number of devices, their GPU numbers, or ``"auto"``.
        synthesis_devices: torch names such as ``"cuda:1"`` or ``"cpu"``, or ``"auto"``.

    Returns:
        the split.

    Raises:
        ValueError: if a GPU is named that is not there, if a device to draw on is neither a GPU nor the CPU
            or is a GPU that comes twice, if both sides name the same one of several GPUs, or if the trainer's
            number is below 1 or does not divide the global batch.
    """
    named = () if synthesis_devices == "auto" or not needs_synthesis else tuple(synthesis_devices)
    if trainer_devices == "auto":
        trainer = _choose_trainer_devices(num_gpus, global_batch_size, needs_synthesis, named)
    else:
        trainer = _read_trainer_devices(num_gpus, trainer_devices)
    num_ranks = trainer if isinstance(trainer, int) else len(trainer)
    if num_ranks < 1 or global_batch_size % num_ranks:
        raise ValueError(
            "the number of trainer.devices must be at least 1 and divide data.batch_size, got "
            f"{num_ranks} devices for a batch of {global_batch_size}"
        )
    drawing: tuple[str, ...] = ()
    if needs_synthesis:
        drawing = named or _choose_synthesis_devices(num_gpus, trainer)
        _check_apart(drawing, trainer, num_gpus)
    processes = num_ranks + len(drawing)
    threads = max(1, num_cores // processes)
    shares = not isinstance(trainer, int) and any(_gpu_number(device) in trainer for device in drawing)
    return DeviceSplit("gpu" if num_gpus else "cpu", trainer, drawing, threads, threads, shares)


def _choose_trainer_devices(
    num_gpus: int, global_batch_size: int, needs_synthesis: bool, drawing: tuple[str, ...]
) -> tuple[int, ...] | int:
    if num_gpus == 0:
        return 1
    free = [number for number in range(num_gpus) if number not in map(_gpu_number, drawing)] or [0]
    most = max(1, len(free) - 1) if needs_synthesis and not drawing else len(free)
    return tuple(free[: max(n for n in range(1, most + 1) if global_batch_size % n == 0)])


def _read_trainer_devices(num_gpus: int, choice: int | Sequence[int]) -> tuple[int, ...] | int:
    if num_gpus == 0:
        return choice if isinstance(choice, int) else len(choice)
    numbers = tuple(range(choice)) if isinstance(choice, int) else tuple(choice)
    for number in numbers:
        if not 0 <= number < num_gpus:
            raise ValueError(f"trainer.devices must name GPUs in 0..{num_gpus - 1}, got {number}")
    return numbers


def _choose_synthesis_devices(num_gpus: int, trainer: tuple[int, ...] | int) -> tuple[str, ...]:
    if isinstance(trainer, int):
        return ("cpu",)
    left = [number for number in range(num_gpus) if number not in trainer]
    return tuple(f"cuda:{number}" for number in left or [0])


def _gpu_number(device: str) -> int | None:
    """Return the number in a torch name such as ``cuda:1``; ``None`` for the CPU."""
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found is None:
        raise ValueError(f"synthesis.devices must be named 'cuda:0', 'cuda:1', ... or 'cpu', got {device!r}")
    return None if device == "cpu" else int(found[1] or 0)


def _check_apart(drawing: tuple[str, ...], trainer: tuple[int, ...] | int, num_gpus: int) -> None:
    numbers = [number for number in map(_gpu_number, drawing) if number is not None]
    for number in numbers:
        if number >= num_gpus:
            raise ValueError(
                f"synthesis.devices must name GPUs of this host, which has {num_gpus}, got cuda:{number}"
            )
        if numbers.count(number) > 1:
            raise ValueError(f"synthesis.devices must name a GPU once, cuda:{number} comes twice")
        if not isinstance(trainer, int) and number in trainer and num_gpus > 1:
            raise ValueError(
                f"synthesis.devices and trainer.devices may not share a GPU, both have cuda:{number}"
            )
