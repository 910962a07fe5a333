"""Keep arrays that are slow to make in a folder of .npy files, which open without being read into memory."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

_log = logging.getLogger(__name__)
_INDEX = "index.json"


def cached_arrays(
    source: Path, cache_dir: Path, format_version: int, build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays made from a file; make them only if they are not in the cache.

    The key is the path, size and time of change of ``source``, and ``format_version``. A new entry appears
    at once and whole; of several processes one builds while the others wait. Entries of an older state of
    the same file are removed, a damaged entry is reported and built again. The memory of the maps is shared
    by all processes of the machine. Where ``cache_dir`` cannot be written, as in a read-only dataset folder,
    the cache lies in the user's own (``XDG_CACHE_HOME``, else ``~/.cache``), and where that cannot either,
    the arrays are made anew in memory; both are told.

    Args:
        source: the file that the arrays are made from.
        cache_dir: folder of the cache; made if absent.
        format_version: to be raised when the arrays change their meaning.
        build: makes the arrays.

    Returns:
        Arrays by name, mapped read-only where there is a cache.
    """
    status = source.stat()
    owner = f"{source.stem}-{_digest(str(source.resolve()))}"
    name = f"{owner}-{_digest(f'{status.st_size} {status.st_mtime_ns} {format_version}')}"
    folders = (cache_dir, _users_cache())
    for folder in folders:
        if (arrays := _open(folder / name)) is not None:
            return arrays
    folder = next(filter(_is_writable, folders), None)
    if folder is None:
        _log.warning("neither %s nor %s can be written: %s is read anew by each process", *folders, source)
        return build()
    if folder != cache_dir:
        _log.warning("%s cannot be written: what is read from %s is cached in %s", cache_dir, source, folder)
    return _build_once(folder, owner, folder / name, build)


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "mflight"


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _build_once(
    cache_dir: Path, owner: str, entry: Path, build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    with _locked(cache_dir / f"{owner}.lock"):
        arrays = _open(entry)  # another process may have built it while this one waited
        if arrays is None:
            built = build()
            for old in cache_dir.glob(f"{owner}-*"):
                shutil.rmtree(old, ignore_errors=True)
            _save(entry, built)
            arrays = _open(entry)
    return arrays


def _open(entry: Path) -> dict[str, np.ndarray] | None:
    if not entry.is_dir():
        return None
    try:
        index = json.loads((entry / _INDEX).read_text())
        # an empty file cannot be mapped
        arrays = {
            n: np.load(entry / f"{n}.npy", mmap_mode="r" if np.prod(s) else None) for n, s in index.items()
        }
        for name, shape in index.items():
            if list(arrays[name].shape) != shape:
                raise ValueError(f"{name}.npy should have shape {shape} and has {list(arrays[name].shape)}")
    except (OSError, ValueError, EOFError, AttributeError) as error:
        _log.warning("The cache entry %s is damaged and will be built again: %s", entry, error)
        return None
    return arrays


def _save(entry: Path, arrays: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix="unfinished-") as folder:
        inside = Path(folder) / "entry"
        inside.mkdir()
        for name, array in arrays.items():
            np.save(inside / f"{name}.npy", array)
        (inside / _INDEX).write_text(json.dumps({name: list(array.shape) for name, array in arrays.items()}))
        try:
            inside.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was first, on a file system without locks
                raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        with suppress(OSError):  # a file system without locks: several processes may build the same
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
