"""How a checkpoint gets on disk: in one piece, and never at the price of the run."""

import errno
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

logger = logging.getLogger(__name__)


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
