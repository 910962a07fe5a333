"""Which devices and cores train, and which draw."""

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
    """

    accelerator: Literal["gpu", "cpu"]
    trainer_devices: tuple[int, ...] | int
    synthesis_devices: tuple[str, ...]
    trainer_threads: int
    synthesis_threads: int


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

    With ``auto`` on both sides the trainer takes the most GPUs whose number divides the global batch and that
    leave at least one to draw. With one GPU, generator and trainer share it. Without a GPU both run on the CPU and
    halve its cores.

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
        ValueError: if a GPU is named that is not there, if both sides name the same one of several GPUs, or if the
            trainer's number does not divide the global batch.

    """
    trainer = _trainer_devices(num_gpus, global_batch_size, needs_synthesis, trainer_devices)
    num_ranks = trainer if isinstance(trainer, int) else len(trainer)
    if global_batch_size % num_ranks:
        raise ValueError(
            f"the number of trainer.devices must divide data.batch_size, got {num_ranks} devices for a batch of "
            f"{global_batch_size}"
        )
    drawing: tuple[str, ...] = ()
    if needs_synthesis:
        drawing = _synthesis_devices(num_gpus, trainer, synthesis_devices)
        _check_apart(drawing, trainer, num_gpus)
    processes = num_ranks + len(drawing)
    threads = max(1, num_cores // processes)
    return DeviceSplit("gpu" if num_gpus else "cpu", trainer, drawing, threads, threads)


def _trainer_devices(
    num_gpus: int, global_batch_size: int, needs_synthesis: bool, choice: DeviceChoice
) -> tuple[int, ...] | int:
    if num_gpus == 0:
        if choice == "auto":
            return 1
        return choice if isinstance(choice, int) else len(choice)
    if choice == "auto":
        most = max(1, num_gpus - 1) if needs_synthesis else num_gpus
        return tuple(range(max(n for n in range(1, most + 1) if global_batch_size % n == 0)))
    numbers = tuple(range(choice)) if isinstance(choice, int) else tuple(choice)
    for number in numbers:
        if not 0 <= number < num_gpus:
            raise ValueError(f"trainer.devices must name GPUs in 0..{num_gpus - 1}, got {number}")
    return numbers


def _synthesis_devices(
    num_gpus: int, trainer: tuple[int, ...] | int, choice: Sequence[str] | Literal["auto"]
) -> tuple[str, ...]:
    if choice != "auto":
        return tuple(choice)
    if num_gpus == 0:
        return ("cpu",)
    left = [number for number in range(num_gpus) if number not in trainer]
    return tuple(f"cuda:{number}" for number in left or [0])


def _check_apart(drawing: tuple[str, ...], trainer: tuple[int, ...] | int, num_gpus: int) -> None:
    for device in drawing:
        if not device.startswith("cuda"):
            continue
        number = int(device.partition(":")[2] or 0)
        if number >= num_gpus:
            raise ValueError(f"synthesis.devices must name GPUs below cuda:{num_gpus}, got {device}")
        if not isinstance(trainer, int) and number in trainer and num_gpus > 1:
            raise ValueError(f"synthesis.devices and trainer.devices may not share a GPU, both have {device}")
