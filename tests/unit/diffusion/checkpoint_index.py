"""Copies of a checkpoint whose ``model_index.json`` says something else."""

import json
import shutil
from pathlib import Path
from typing import Any


def copy_with_index(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """Copy ``checkpoint`` to ``folder`` and change keys of its index."""
    shutil.copytree(checkpoint, folder)
    index = json.loads((folder / "model_index.json").read_text()) | changes
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
