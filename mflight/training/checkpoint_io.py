"""How a checkpoint gets on disk, in one piece and never at the price of the run; and how it is opened."""

import errno
import io
import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from mflight.data.class_names import classes_apart

logger = logging.getLogger(__name__)

CLASSES = "MixedDataModule"
"""Key of a checkpoint under which the names of the classes trained on lie; Lightning derives it."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint in one step, so that a kill at any moment leaves the old one or the new one.

    Lightning's own writes into the temporary folder and moves the file from there, which is a copy where the
    two lie on different disks. On a full disk the old checkpoint is kept, a warning tells so, and training
    goes on.
    """

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what is kept.
            path: a local file; its folder is made.
            storage_options: of Lightning's remote stores; not used.

        Raises:
            OSError: if it cannot be written for another reason than a full disk or quota.
        """
        path = Path(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = io.BytesIO()  # torch's own writer hides the errno of a full disk
            torch.save(checkpoint, whole)
            with draft.open("wb") as file:
                file.write(whole.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            kept = "the one before is kept" if path.exists() else "there is none yet"
            logger.warning("the disk is full: checkpoint %s is not written, %s; training goes on", path, kept)


def open_checkpoint(
    file: str | Path, *, key: str, categories: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Open a checkpoint of train.py, its tensors mapped.

    Args:
        file: the checkpoint.
        key: what the user calls it, for the message.
        categories: names of the dataset's classes by ``category_id``: those that its detector must know, for
            labels are places in the order of their ids. ``None``: any.

    Returns:
        What it holds.

    Raises:
        ValueError: if it is none, or of other classes; one of before tells only how many these are.
    """
    try:
        held = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        size, said = Path(file).stat().st_size, str(error).partition("\n")[0]
        raise ValueError(f"{key}={file} cannot be read as a checkpoint: {said}, in {size:,} bytes") from None
    if not isinstance(held, dict) or not {"state_dict", "global_step"} <= held.keys():
        raise ValueError(
            f"{key}={file} must be a checkpoint of train.py, it has no state_dict or global_step"
        )
    if categories is None:
        return held
    if apart := classes_apart(held.get(CLASSES, {}).get("category_names", categories), categories):
        raise ValueError(f"{key}={file} and the dataset must {apart}")
    num_classes = len(held.get("class_counts", ())) or len(categories)
    if num_classes != len(categories):
        told = f"was trained on {num_classes} classes, the dataset has {len(categories)}"
        raise ValueError(f"{key}={file} {told}")
    return held
