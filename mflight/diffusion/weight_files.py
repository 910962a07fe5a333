"""Which files of a model's folder hold the weights that are loaded. No torch."""

import re
from pathlib import Path

WEIGHT_FILE = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?P<suffix>safetensors|bin)"
)
_VARIANTS = ("", "fp16")  # preferred in this order, then any other


def find_weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that are loaded; of several variants the one without a name, else ``fp16``.

    Args:
        folder: of one model, named as diffusers and transformers name its files.

    Returns:
        One file, or the shards of one; nothing if there is none.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := WEIGHT_FILE.fullmatch(path.name):
            found.setdefault((match["variant"] or "", match["suffix"]), []).append(path)
    return tuple(found[min(found, key=_preference)]) if found else ()


def _preference(kind: tuple[str, str]) -> tuple[int, str, bool]:
    variant, suffix = kind
    place = _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS)
    return place, variant, suffix != "safetensors"
