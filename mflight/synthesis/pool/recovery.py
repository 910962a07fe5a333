"""Opening a pool for writing: shards and index are made to agree, whatever a kill or cut has left. No torch.

Whole samples that the index does not know are taken into it, all of them where the index itself is gone or
damaged (a damaged one is kept under another name). Samples whose bytes are gone are forgotten, so they are
drawn again. No shard is ever cut but the torn end that a kill in mid-write has left in the series that is
opened, and none is appended to: a new one begins behind it.
"""

import logging
import os
import re
from pathlib import Path

from mflight.synthesis.pool.index import (
    INDEX_NAME,
    DamagedIndexError,
    PoolError,
    PoolIndex,
    create_index,
    holds_pool,
    read_index,
)
from mflight.synthesis.pool.locks import is_being_written
from mflight.synthesis.pool.packing import answer_of, unpack_sample
from mflight.synthesis.pool.shards import begins_torn, split_shard_name, whole_samples

logger = logging.getLogger(__name__)

_ENDS = """
    SELECT shard, max(offset + size), sum(state = 'kept') FROM requests WHERE shard IS NOT NULL GROUP BY shard
"""
_FORGET = "DELETE FROM requests WHERE state = 'kept' AND shard = ? AND offset + size > ?"


def open_index(folder: Path, writer_name: str) -> tuple[PoolIndex, int]:
    """Open the index, and put right what is wrong. The caller holds the pool and the series.

    Args:
        folder: the pool folder.
        writer_name: whose series is opened.

    Returns:
        The index, and a number behind those of all shards of the series, evicted ones included.
    """
    if damage := _find_damage(folder):
        _put_aside(folder, damage)
    if is_new := not holds_pool(folder):
        create_index(folder)
    index = PoolIndex(folder)
    known = {shard: (end, num_kept) for shard, end, num_kept in index.rows(_ENDS)}
    shards = _shards_in(folder)
    for shard in known.keys() | shards.keys():
        end, num_kept = known.get(shard, (0, None))
        size = shards.get(shard, 0)
        if num_kept == 0:
            (folder / shard).unlink(missing_ok=True)  # evicted: a kill came before this
        elif size < end:
            lost = index.change(_FORGET, shard, size)
            logger.warning("%s: torn, %d of %d bytes; %d samples are drawn again", shard, size, end, lost)
        elif size > end and _is_free(folder, shard, writer_name, is_new):
            _take_in(index, folder / shard, end)
    series = (split_shard_name(shard) for shard in known.keys() | shards.keys())
    return index, 1 + max((number for owner, number in series if owner == writer_name), default=-1)


def find_unacknowledged(folder: Path) -> dict[str, str]:
    """Look for the traces of a kill in mid-write and of an index that was cut.

    A reader passes over bytes that the index does not speak of without a word, as it cannot tell them from a
    write that is under way. Series that a living writer holds are left out.

    Args:
        folder: the pool folder; it may be missing.

    Returns:
        What is wrong, by the name of the file that is not whole.
    """
    if damage := _find_damage(folder):
        return {INDEX_NAME: damage}
    rows = read_index(folder, lambda index: index.execute(_ENDS).fetchall()) if holds_pool(folder) else []
    known = {shard: end for shard, end, _ in rows}
    return {
        shard: f"holds {size - known.get(shard, 0)} bytes that its index does not speak of"
        for shard, size in _shards_in(folder).items()
        if size > known.get(shard, 0) and not is_being_written(folder, split_shard_name(shard)[0])
    }


def _find_damage(folder: Path) -> str | None:
    """Return what is wrong with the file of the index; None if nothing is, or if there is none."""
    if not holds_pool(folder):
        return None
    try:
        said = read_index(folder, lambda index: index.execute("PRAGMA quick_check(1)").fetchone()[0])
    except DamagedIndexError as error:
        return str(error)
    return None if said == "ok" else f"{INDEX_NAME}: damaged ({said})"


def _put_aside(folder: Path, damage: str) -> None:
    number = len(list(folder.glob("damaged-*.db")))
    for suffix in ("-wal", "-shm", ""):
        if (path := folder / f"{INDEX_NAME}{suffix}").exists():
            os.replace(path, folder / f"damaged-{number}.db{suffix}")
    logger.warning("%s; it is kept as damaged-%d.db, and a new one is made from the shards", damage, number)


def _shards_in(folder: Path) -> dict[str, int]:
    """Return the sizes of the shards that are there, in bytes."""
    return {
        path.name: path.stat().st_size for path in folder.glob("shard-*.tar") if split_shard_name(path.name)
    }


def _is_free(folder: Path, shard: str, writer_name: str, is_new: bool) -> bool:
    """Return whether a shard's end is not being written: it is of the own series, or of nobody's."""
    owner, _ = split_shard_name(shard)
    return owner == writer_name or (is_new and not is_being_written(folder, owner))


def _take_in(index: PoolIndex, tar: Path, end: int) -> None:
    """Take the whole samples behind a byte of a shard into the index, and cut what is torn behind them."""
    owner, _ = split_shard_name(tar.name)
    found = 0
    with index.transaction():
        for offset, sample_id, span in whole_samples(tar, end):
            try:
                sample = unpack_sample(span, sample_id)
            except PoolError as error:
                logger.warning("%s: from byte %d on it is not read: %s", tar.name, offset, error)
                return
            number = int(re.search(r"\d*$", sample_id)[0] or 0)
            found += index.add(answer_of(sample, number), owner, tar.name, offset, span)
            end = offset + len(span)
    if found:
        logger.warning("%s: the index takes in %d samples that it did not know", tar.name, found)
    if (rest := tar.stat().st_size - end) and begins_torn(tar, end):
        logger.warning("%s: the last %d bytes are no whole sample and are cut", tar.name, rest)
        os.truncate(tar, end)
    elif rest:
        logger.warning("%s: the last %d bytes are no sample; they are kept and not read", tar.name, rest)
