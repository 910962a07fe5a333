"""What must lie on disk before a run begins. No torch: it answers within a second."""

from collections.abc import Mapping
from pathlib import Path

LVIS_DOWNLOADS = "https://www.lvisdataset.org/dataset"
DATASET_KEYS = ("train_annotations", "train_images", "val_annotations", "val_images")
"""The keys of a ``data`` config that name files and folders."""


def require_dataset(paths: Mapping[str, str | Path]) -> None:
    """Raise unless every file and folder of a dataset is there.

    Args:
        paths: one for each of ``DATASET_KEYS``.

    Raises:
        FileNotFoundError: naming what is missing, where LVIS publishes it and the keys that point at it.
    """
    if missing := missing_parts(paths):
        raise FileNotFoundError(
            f"the dataset is not there: {', '.join(missing)} do not exist. LVIS v1 annotations and the "
            f"COCO 2017 images they need are published at {LVIS_DOWNLOADS}; set data.root (or "
            "MFLIGHT_LVIS_ROOT) to the folder that holds them, or these keys one by one"
        )


def missing_parts(paths: Mapping[str, str | Path]) -> list[str]:
    """Return ``data.key=path`` for each of ``DATASET_KEYS`` that names no file, or no folder of images."""
    is_there = {key: Path.is_dir if key.endswith("images") else Path.is_file for key in DATASET_KEYS}
    return [f"data.{key}={paths[key]}" for key in DATASET_KEYS if not is_there[key](Path(paths[key]))]
