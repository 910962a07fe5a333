"""What a generator runs out of: room on the disk, memory on the device. Torch is used where it is loaded."""

import errno
import shutil
import sys
from pathlib import Path


def check_room(folder: Path, min_free_bytes: int) -> None:
    """Act as on a full disk before it is full: the training run keeps its checkpoints there.

    Args:
        folder: on the disk in question.
        min_free_bytes: room that must be left; 0 does not look.

    Raises:
        OSError: with ``ENOSPC``, if less is left.
    """
    if not min_free_bytes:
        return
    room = shutil.disk_usage(folder).free
    if room < min_free_bytes:
        left = f"{room:,} bytes are left, min_free_bytes is {min_free_bytes:,}"
        raise OSError(errno.ENOSPC, f"No space left on device ({left})")


def is_disk_full(error: Exception) -> bool:
    """Return whether an error tells of a full disk or quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device had too little memory; CUDA's libraries say so in words only."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def free_device_memory() -> None:
    """Give the device's unused memory back; torch is there, since the error was one of its own."""
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
