"""What lies in a pool folder that no index speaks of. No torch."""

import fcntl
import os
from pathlib import Path

from mflight.synthesis.pool.shards import (
    PoolError,
    SealLine,
    acknowledged_bytes,
    complete_lines,
    index_path,
    list_indexes,
    parse_lines,
    shard_path,
    shards_without_index,
    split_index_name,
)


def find_unacknowledged(folder: Path) -> dict[str, str]:
    """Look for the traces of a kill in mid-write and of indexes that were cut.

    A reader passes over such bytes without a word, as it cannot tell them from a write that is under way.
    Series that a living writer holds are left out.

    Args:
        folder: the pool folder; it may be missing.

    Returns:
        A sentence by the name of the file that is not whole.
    """
    found: dict[str, str] = {}
    for path in list_indexes(folder):
        if _is_being_written(folder, split_index_name(path.name)[0]):
            continue
        raw = path.read_bytes()
        whole = complete_lines(raw)
        if len(whole) < len(raw):
            found[path.name] = f"ends in a torn line of {len(raw) - len(whole)} bytes"
            continue
        try:
            lines = parse_lines(whole, path, with_header=True)
        except PoolError:
            continue  # a reader tells of it
        tar = shard_path(path)
        size, known = tar.stat().st_size if tar.exists() else 0, acknowledged_bytes(lines)
        if size > known and not any(isinstance(line, SealLine) for line in lines):
            found[tar.name] = f"holds {size - known} bytes that its index does not speak of"
    return found | _find_orphans(folder)


def _find_orphans(folder: Path) -> dict[str, str]:
    found = {}
    names = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
    for writer_name, number in shards_without_index(names):
        tar = shard_path(index_path(folder, writer_name, number))
        if (size := tar.stat().st_size) and not _is_being_written(folder, writer_name):
            found[tar.name] = f"holds {size} bytes and has no index"
    return found


def _is_being_written(folder: Path, writer_name: str) -> bool:
    try:
        descriptor = os.open(folder / f"writer-{writer_name}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: nobody can hold it
        return False
    finally:
        os.close(descriptor)
    return False
