"""What lies in a pool folder that no index speaks of. No torch."""

import fcntl
import os
from pathlib import Path

from mflight.synthesis.pool.shards import (
    PoolError,
    SealLine,
    acknowledged_bytes,
    complete_lines,
    list_indexes,
    parse_lines,
    shard_path,
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
    return found


def _is_being_written(folder: Path, writer_name: str) -> bool:
    try:
        descriptor = os.open(folder / f"writer-{writer_name}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
