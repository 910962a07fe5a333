"""Following a pool and reading its samples; nothing is ever written. No torch, no pickle."""

import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mflight.synthesis.pool.index import INDEX_NAME, DamagedIndexError, holds_pool, read_index
from mflight.synthesis.pool.packing import EncodedSample, PoolSample, decode_sample, unpack_sample
from mflight.synthesis.pool.shards import read_span

logger = logging.getLogger(__name__)

_NEW_SAMPLES = """
    SELECT number, request_id, request_index, shard, offset, size, crc32, category_ids FROM requests
    WHERE number > ? AND +state = 'kept' ORDER BY number  -- the plus: go by the number, not by the state
"""
_IS_EVICTED = "SELECT 1 FROM requests WHERE state = 'evicted' AND shard = ?"
_KEPT_BY_CLASS = "SELECT value, count(*) FROM requests, json_each(category_ids) GROUP BY value"
_LOST_BY_CLASS = """
    SELECT json_extract(value, '$[0]') AS category_id, count(*) FROM requests, json_each(regions)
    WHERE state = 'dropped' OR json_extract(value, '$[1]') IS NOT NULL GROUP BY category_id
"""


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one sample lies: small, picklable, enough to read it from any process.

    Attributes:
        sample_id: the sample's name.
        index: number of the request that it answers; gives samples an order that no race can change.
        shard: file name of the tar shard.
        offset: start of the sample's members in the shard, in bytes.
        size: length of them, in bytes.
        crc32: checksum of them.
        category_ids: of the instances in the image.
    """

    sample_id: str
    index: int
    shard: str
    offset: int
    size: int
    crc32: int
    category_ids: tuple[int, ...]


class Acceptance(NamedTuple):
    """How often each class passes the filter; all regions of a dropped canvas are lost.

    Attributes:
        num_images: canvases kept, evicted ones included.
        num_drawn: regions drawn, by category_id.
        num_kept: instances kept, by category_id.
    """

    num_images: int
    num_drawn: Counter[int]
    num_kept: Counter[int]


class PoolReader:
    """Follows the index of a pool folder and reads samples by place; any number of readers may do so.

    What is torn is logged once, noted in ``set_aside`` (name of the shard or of the index, to the reason) and
    never read; a pool of another version is refused with a ``PoolError``.

    Args:
        folder: the pool folder; it may appear later.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.set_aside: dict[str, str] = {}
        self._last_number = self._inode = 0
        self._shard_of: dict[str, str] = {}
        self._newly_evicted: list[str] = []
        self._ask(lambda index: None, None)

    @property
    def newly_evicted(self) -> Sequence[str]:
        """Ids of the samples that ``poll`` had returned before and that its last call found evicted."""
        return self._newly_evicted

    def poll(self) -> list[SampleRef]:
        """Return the samples acknowledged since the last call, in order of their requests.

        A sample that comes again at another place (its first shard was damaged) is returned again.
        """
        rows, evicted = self._ask(self._find_new, ([], ()))
        self._newly_evicted = [name for name, shard in self._shard_of.items() if shard in evicted]
        for sample_id in self._newly_evicted:
            del self._shard_of[sample_id]
        refs = [SampleRef(*row[1:-1], tuple(json.loads(row[-1]))) for row in rows]
        self._last_number = rows[-1][0] if rows else self._last_number
        sizes = {shard: self._size_of(shard) for shard in {ref.shard for ref in refs}}
        whole = [ref for ref in refs if ref.offset + ref.size <= sizes[ref.shard]]
        self._shard_of.update({ref.sample_id: ref.shard for ref in whole})
        for shard in sorted({ref.shard for ref in refs if ref.offset + ref.size > sizes[ref.shard] >= 0}):
            said = f"{shard}: torn, {sizes[shard]} bytes are left, samples behind them are not read"
            self._put_aside(shard, said)
        return sorted(whole, key=lambda ref: (ref.index, ref.sample_id))

    def read(self, ref: SampleRef) -> PoolSample:
        """Read one sample; a ``PoolError`` tells what is missing, evicted, torn or not a sample's.

        Args:
            ref: from ``poll``, of this reader or of another one of the same folder.

        Returns:
            The sample, its image decoded.
        """
        return decode_sample(self._read_span(ref), ref.sample_id)

    def read_encoded(self, ref: SampleRef) -> EncodedSample:
        """Read one sample as ``read`` does, its image as it is stored."""
        return unpack_sample(self._read_span(ref), ref.sample_id)

    def _read_span(self, ref: SampleRef) -> bytes:
        return read_span(self.folder / ref.shard, ref.offset, ref.size, ref.crc32)

    def rows(self, query: str, *values: Any) -> list[tuple]:
        """Return the rows of the index that a query finds; see ``index.py`` for the table ``requests``."""
        return self._ask(lambda index: index.execute(query, values).fetchall(), [])

    def ids(self, state: str) -> set[str]:
        """Return the names of all requests whose state is ``kept``, ``dropped`` or ``evicted``."""
        return {name for (name,) in self.rows("SELECT request_id FROM requests WHERE state = ?", state)}

    def acceptance(self) -> Acceptance:
        """Count images and regions by class; no image is opened for it."""
        kept, lost = (Counter(dict(self.rows(query))) for query in (_KEPT_BY_CLASS, _LOST_BY_CLASS))
        images = self.rows("SELECT count(*) FROM requests WHERE state != 'dropped'")
        return Acceptance(images[0][0] if images else 0, kept + lost, kept)

    def _ask(self, ask: Callable[[sqlite3.Connection], Any], otherwise: Any) -> Any:
        """Ask the index; ``otherwise`` is the answer where there is none that can be read now."""
        try:
            return read_index(self.folder, ask) if holds_pool(self.folder) else otherwise
        except (DamagedIndexError, sqlite3.OperationalError, OSError) as error:
            self._put_aside(INDEX_NAME, f"{self.folder}: {error}")
            return otherwise

    def _find_new(self, index: sqlite3.Connection) -> tuple[list[tuple], set[str]]:
        inode = (self.folder / INDEX_NAME).stat().st_ino
        if inode != self._inode:  # a new one, made from the shards
            self._inode, self._last_number = inode, 0
        shards = set(self._shard_of.values())
        evicted = {shard for shard in shards if index.execute(_IS_EVICTED, (shard,)).fetchone()}
        return index.execute(_NEW_SAMPLES, (self._last_number,)).fetchall(), evicted

    def _size_of(self, shard: str) -> int:
        """Return the size of a shard in bytes, 0 if it is missing, -1 if it has just been evicted."""
        try:
            return (self.folder / shard).stat().st_size
        except FileNotFoundError:
            is_evicted = self._ask(lambda index: index.execute(_IS_EVICTED, (shard,)).fetchone(), None)
            return -1 if is_evicted else 0

    def _put_aside(self, name: str, reason: str) -> None:
        if name not in self.set_aside:
            self.set_aside[name] = reason
            logger.warning("set aside in the pool: %s", reason)
