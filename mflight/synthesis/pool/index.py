"""The index of a pool: one SQLite file, ``pool.db``, beside plain tar shards. No torch, no pickle.

It has a row for each answered request: where its sample lies, or that its canvas was dropped, or that its
sample was evicted to make room. Any number of processes follow and change it at once. ::

    sqlite3 pool.db "SELECT state, count(*), sum(size) FROM requests GROUP BY state"
    sqlite3 pool.db "SELECT value, count(*) FROM requests, json_each(category_ids) GROUP BY value"
    tar xf shard-w0-00000.tar 7-00000042.jpg
"""

import contextlib
import errno
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

INDEX_NAME = "pool.db"
FORMAT_VERSION = 2  # 1 had an index in JSON lines for each shard, and a pool.json
_PAGE_BYTES = 1024  # small commits
_SCHEMA = f"""
PRAGMA page_size = {_PAGE_BYTES};
BEGIN;
CREATE TABLE requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of the answers: readers follow it, none comes twice
    request_id TEXT NOT NULL UNIQUE,           -- also the name of the sample
    request_index INTEGER NOT NULL,            -- place in the planner's sequence
    state TEXT NOT NULL,                       -- kept, dropped (no region passed the filter) or evicted
    writer TEXT NOT NULL,
    answered_at REAL NOT NULL,                 -- seconds since 1970
    regions TEXT NOT NULL,                     -- JSON [[category_id, rule that rejected it or null], ...]
    category_ids TEXT NOT NULL,                -- JSON [category_id, ...] of the instances
    shard TEXT,                                -- the tar file; NULL for a dropped canvas
    offset INTEGER NOT NULL,                   -- of the sample's members in the shard, in bytes
    size INTEGER NOT NULL,                     -- of these members, in bytes
    crc32 INTEGER NOT NULL,                    -- of these members
    uses INTEGER NOT NULL DEFAULT 0            -- as the training has told last
);
CREATE INDEX held ON requests (state, shard, uses, size, offset);
PRAGMA user_version = {FORMAT_VERSION};
COMMIT;
"""
_ADD = """
    INSERT OR IGNORE INTO requests (request_id, request_index, state, writer, answered_at, regions,
        category_ids, shard, offset, size, crc32) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_LOCAL_FILE_SYSTEMS = frozenset("apfs btrfs ext2 ext3 ext4 f2fs overlay ramfs tmpfs xfs zfs".split())
_PATIENCE_S = 60.0
_LOG_MARK = b"\x02"  # of a file that has had a write-ahead log, at byte 18
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)

Result = TypeVar("Result")


@dataclass(frozen=True)
class RequestAnswer:
    """What the index says of an answered request, beside the place of its sample.

    Attributes:
        request_id: the request's name, and that of its sample.
        index: number of the request.
        regions: ``(category_id, rule that rejected it or None)`` of each region.
        category_ids: of the instances; None if the canvas was dropped.
    """

    request_id: str
    index: int
    regions: tuple[tuple[int, str | None], ...]
    category_ids: tuple[int, ...] | None = None


class PoolError(ValueError):
    """Something in a pool folder is torn, foreign or in another writer's hands."""


class DamagedIndexError(PoolError):
    """The index is not whole; the next writer makes a new one from the shards."""


def holds_pool(folder: str | Path) -> bool:
    """Return whether a folder holds a pool; one of an older version is a ``PoolError``."""
    if (Path(folder) / "pool.json").exists():
        raise PoolError(
            f"pool {folder} was written by an older version of mflight: it has a pool.json, this one reads a "
            f"{INDEX_NAME}; name another folder, or train from it with the version that drew it"
        )
    return (Path(folder) / INDEX_NAME).is_file()


def create_index(folder: Path) -> None:
    """Make an index without rows; whoever looks for one finds none, or the whole."""
    draft = folder / f".{INDEX_NAME}"
    draft.unlink(missing_ok=True)
    with _disk_errors(), contextlib.closing(sqlite3.connect(draft)) as connection:
        connection.executescript(_SCHEMA)
    os.replace(draft, folder / INDEX_NAME)


class PoolIndex:
    """A connection that may write; a full disk is an ``OSError`` in it, as for any other file.

    On a file system that is not known to be local, where no memory is shared, it keeps a rollback journal in
    the place of a write-ahead log: slower, and all it needs is locks.

    Args:
        folder: the pool folder.
        patience_s: how long it waits for others to end their changes, in seconds.

    Raises:
        PoolError: if there is no pool, or one of another version.
    """

    def __init__(self, folder: Path, *, patience_s: float = _PATIENCE_S):
        if not holds_pool(folder):
            raise PoolError(f"{folder} is no pool: it has no {INDEX_NAME}")
        self.folder, has_log = folder, _is_local(folder)
        with _disk_errors():
            address = f"{(folder / INDEX_NAME).resolve().as_uri()}?mode=rw"
            self._connection = sqlite3.connect(address, patience_s, isolation_level=None, uri=True)
            self._connection.execute(f"PRAGMA journal_mode = {'WAL' if has_log else 'TRUNCATE'}")
            self._connection.execute(f"PRAGMA synchronous = {'NORMAL' if has_log else 'FULL'}")
            _check_version(self.value("PRAGMA user_version"))

    def rows(self, query: str, *values: Any) -> list[tuple]:
        """Return the rows that a query finds."""
        return self._connection.execute(query, values).fetchall()

    def value(self, query: str, *values: Any) -> Any:
        """Return the first value of the first row that a query finds; None if there is none."""
        row = self._connection.execute(query, values).fetchone()
        return row and row[0]

    def is_answered(self, request_id: str) -> bool:
        """Return whether a request has given a sample or a dropped canvas."""
        return bool(self.value("SELECT 1 FROM requests WHERE request_id = ?", request_id))

    def add(self, answer: RequestAnswer, writer: str, shard: str | None, offset: int, span: bytes) -> int:
        """Note an answer, unless its request is answered already, and return how many were noted.

        Args:
            answer: what is known of the request.
            writer: who has answered it.
            shard: where the sample lies; None for a dropped canvas.
            offset: start of the sample's members in it, in bytes.
            span: these members.

        Returns:
            1, or 0.
        """
        is_kept = answer.category_ids is not None
        about = (answer.request_id, answer.index, "kept" if is_kept else "dropped", writer, time.time())
        classes = (json.dumps(answer.regions), json.dumps(answer.category_ids or ()))
        return self.change(_ADD, *about, *classes, shard, offset, len(span), zlib.crc32(span))

    def change(self, statement: str, *values: Any) -> int:
        """Return how many rows a statement has changed."""
        return self._connection.execute(statement, values).rowcount

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Change rows all at once, or after an error none; nobody else changes any meanwhile."""
        with _disk_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has rolled it back
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close it; the last one takes the write-ahead log into the file."""
        self._connection.close()


def read_index(folder: Path, ask: Callable[[sqlite3.Connection], Result]) -> Result:
    """Ask the index without leaving anything in the folder, which may be read-only.

    A file at rest, without a write-ahead log, is read without locks, which would need files beside it, and
    read again if it has been changed meanwhile.

    Args:
        folder: the pool folder; it holds a pool.
        ask: takes a connection; it may be called again.

    Returns:
        What ``ask`` returned.

    Raises:
        sqlite3.OperationalError: if it cannot be read now.
        DamagedIndexError: if it is damaged; one of another version is another ``PoolError``.
    """
    path = folder / INDEX_NAME
    while True:
        before = _look_at(path)
        address = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if before.is_at_rest else ''}"
        try:
            with contextlib.closing(sqlite3.connect(address, _PATIENCE_S, uri=True)) as connection:
                _check_length(before)
                _check_version(connection.execute("PRAGMA user_version").fetchone()[0])
                answer = ask(connection)
        except sqlite3.OperationalError:
            if _look_at(path) == before:
                raise
        except sqlite3.DatabaseError as error:
            if not before.is_at_rest or _look_at(path) == before:
                raise DamagedIndexError(f"{INDEX_NAME}: damaged ({error})") from error
        else:
            if not before.is_at_rest or _look_at(path) == before:
                return answer


def tell_uses(folder: Path, uses: dict[str, int], *, forget_others: bool = False) -> None:
    """Note how often the training has used samples, by ``request_id``; it does not wait long for others.

    Args:
        folder: the pool folder; nothing is done where there is no pool yet.
        uses: counts of the samples whose uses have changed.
        forget_others: set the uses of all others to 0.
    """
    if not holds_pool(folder):
        return
    with contextlib.closing(PoolIndex(folder, patience_s=0.1)) as index, index.transaction():
        if forget_others:
            index.change("UPDATE requests SET uses = 0 WHERE uses > 0")
        for request_id, count in uses.items():
            index.change("UPDATE requests SET uses = ? WHERE request_id = ?", count, request_id)


def _check_version(version: int) -> None:
    if version == 0:
        raise sqlite3.DatabaseError("it has no content")
    if version != FORMAT_VERSION:
        raise PoolError(f"{INDEX_NAME} says format version {version}, this program reads {FORMAT_VERSION}")


class _FileState(NamedTuple):
    """What changes with the file of the index, and what follows from it."""

    inode: int
    size: int
    time_ns: int
    is_at_rest: bool  # nobody has a write-ahead log of it


def _look_at(path: Path) -> _FileState:
    with path.open("rb") as file:
        status, header = os.fstat(file.fileno()), file.read(20)
    log = path.with_name(path.name + "-wal")
    is_at_rest = header[18:19] == _LOG_MARK and not (log.exists() and log.stat().st_size)
    return _FileState(status.st_ino, status.st_size, status.st_mtime_ns, is_at_rest)


def _check_length(file: _FileState) -> None:
    if file.is_at_rest and file.size % _PAGE_BYTES:  # a cut between two pages is seen by SQLite
        raise sqlite3.DatabaseError("it is cut")


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode in _FULL:
            raise OSError(errno.ENOSPC, f"No space left on device ({INDEX_NAME}: {error})") from error
        raise


def _is_local(folder: Path) -> bool:
    """Return whether the folder's file system shares memory between processes, as far as one can tell."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return True  # no Linux
    within = [(len(place), kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(within)[1] in _LOCAL_FILE_SYSTEMS
