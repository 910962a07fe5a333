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
    missing = [f"data.{key}={paths[key]}" for key in DATASET_KEYS if not Path(paths[key]).exists()]
    if missing:
        raise FileNotFoundError(
            f"the dataset is not there: {', '.join(missing)} do not exist. LVIS v1 annotations and the "
            f"COCO 2017 images they need are published at {LVIS_DOWNLOADS}; set data.root (or "
            "MFLIGHT_LVIS_ROOT) to the folder that holds them, or these keys one by one"
        )
