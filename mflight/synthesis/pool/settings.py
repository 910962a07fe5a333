"""What a pool is drawn with, noted beside it by seed, so that no other settings go on with it. No torch."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate

from mflight.data.categories import Categories
from mflight.diffusion.weight_files import find_weight_files
from mflight.synthesis.pool.signals import read_json, write_json

SETTINGS_FILE = "generate.json"
_WITHOUT_EFFECT = {"cache_dir", "device", "max_batch"}  # on what is drawn
_LOADED_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")


def describe_settings(
    planner: Mapping[str, Any], synthesizer: Mapping[str, Any], categories: Categories
) -> dict[str, Any]:
    """Flatten what determines the samples of a seed; files count by what is in them, not by where they lie.

    Classes and the folder of a checkpoint are told by a hash (of gigabytes of weights: seconds), a hub id by
    itself.

    Args:
        planner: node of the planner, resolved.
        synthesizer: node of the synthesizer, resolved.
        categories: the classes that the planner draws from.

    Returns:
        Values by dotted keys, as JSON types.
    """
    classes = json.dumps(categories.to_lvis()).encode()
    node = {"planner": {**planner, "categories": _name_hash(hashlib.sha256(classes))}}
    return dict(_flatten({**node, "synthesizer": synthesizer}))


def keep_settings(folder: Path, seed: int, settings: Mapping[str, Any], *, is_new: bool) -> None:
    """Note what a pool is drawn with, or compare it with what was noted.

    A key that one of both lacks has the default of the constructor that takes it, and a node that one of both
    lacks is of the same class: so a setting that a newer version has learnt does not stop an older pool, and
    one that it has no more neither.

    Args:
        folder: the pool folder.
        seed: of the planner; each has settings of its own.
        settings: from `describe_settings`.
        is_new: whether the pool answers no request of the seed; then any settings are right.

    Raises:
        ValueError: if the seed's answers were drawn with other settings, naming the first of them.
    """
    path = folder / SETTINGS_FILE
    by_seed = read_json(path) or {}
    before = settings if is_new else by_seed.get(str(seed), settings)
    known = {**before, **settings}
    for key in sorted(known):
        then, now = (one[key] if key in one else _default_of(key, known) for one in (before, settings))
        if then != now:
            raise ValueError(
                f"pool {folder} was drawn with {key}={then} under seed {seed}, now it is {now}: name another "
                "paths.pool_dir or seed"
            )
    write_json(path, {**by_seed, str(seed): settings})


def _flatten(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if place.endswith(".checkpoint"):
        yield place, _content_of(node)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key not in _WITHOUT_EFFECT:
                yield from _flatten(value, f"{place}.{key}" if place else key)
    else:
        yield place, node


def _content_of(checkpoint: Any) -> Any:
    """A folder by the hash of the files that are loaded; a hub id, or none, by itself."""
    checkpoint = instantiate(checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if checkpoint is None or not Path(checkpoint).expanduser().is_dir():
        return checkpoint
    folder = Path(checkpoint).expanduser()
    digest = hashlib.sha256()
    for path in sorted(_loaded_files(folder)):
        digest.update(path.relative_to(folder).as_posix().encode())
        if path.name == "model_index.json":
            digest.update(hashlib.sha256(_without_unused_parts(path.read_bytes())).digest())
            continue
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return _name_hash(digest)


def _loaded_files(folder: Path) -> Iterator[Path]:
    """Yield configs, vocabulary and weights of a diffusion checkpoint's parts, or of a single model."""
    index = folder / "model_index.json"
    parts = [folder / name for name in _LOADED_PARTS] if index.is_file() else [folder]
    yield from (path for path in (index, folder / "config.json") if path.is_file())
    for part in filter(Path.is_dir, parts):
        yield from find_weight_files(part)
        if part != folder:
            yield from (*part.glob("*.json"), *part.glob("*.txt"))


def _without_unused_parts(index: bytes) -> bytes:
    """Return a ``model_index.json`` as diffusers writes it for a checkpoint of the loaded parts alone."""
    parts = {
        name: part if name in _LOADED_PARTS or not isinstance(part, list) else [None, None]
        for name, part in json.loads(index).items()
    }
    return (json.dumps(parts, indent=2, sort_keys=True) + "\n").encode()


def _name_hash(digest: Any) -> str:
    return f"sha256:{digest.hexdigest()[:16]}"


def _default_of(key: str, known: Mapping[str, Any]) -> Any:
    """What the constructor of a node takes for a key that is not set; None where it is not known."""
    node, _, name = key.rpartition(".")
    if name == "_target_":
        return None if node in known else known[key]
    target = known.get(f"{node}._target_")
    parameter = inspect.signature(get_object(target)).parameters.get(name) if target else None
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return None
    return json.loads(json.dumps(parameter.default, default=str))
