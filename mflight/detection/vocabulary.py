"""Text embeddings of the classes, by which a classifier of regions compares them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def read_text_embeddings(file: Path, *, num_classes: int) -> Tensor:
    """Read the embeddings of all classes, in the order of their labels.

    Args:
        file: a ``.npy`` of float[C, D], such as Detic's ``lvis_v1_clip_a+cname.npy`` of CLIP ViT-B/32.
        num_classes: ``C``.

    Returns:
        float32[C, D] of length 1 each.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"model.text_embeddings must name a .npy file, {str(file)!r} is none")
    try:
        embeddings = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"model.text_embeddings={file} must be a .npy of float[C, D] ({error})") from error
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or len(embeddings) != num_classes:
        raise ValueError(
            f"model.text_embeddings={file} must hold an embedding for each of the {num_classes} classes, "
            f"float[{num_classes}, D], it holds {embeddings.dtype}{list(embeddings.shape)}"
        )
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        label = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0]) + 1
        raise ValueError(f"model.text_embeddings={file}: that of label {label} has no direction")
    return F.normalize(torch.from_numpy(embeddings.astype(np.float32)), dim=1)
