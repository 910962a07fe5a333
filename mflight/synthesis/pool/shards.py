"""The on-disk form of a pool: tar shards with an index that acknowledges samples. No torch, no pickle.

A writer owns a series of shards ``shard-<writer>-<number>.tar``. Beside each lies
``shard-<writer>-<number>.idx.jsonl``: a header, then one line per sample that is safely on disk, one per
request whose canvas was dropped, and a seal when the shard will not grow any more. A line that is not
complete, and bytes of the tar that no line speaks of, do not exist for a reader. A shard that was evicted
leaves one line in ``evicted.jsonl``.
"""

import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

FORMAT_NAME = "mflight-pool"
FORMAT_VERSION = 1

_INDEX_NAME = re.compile(r"^shard-(?P<writer>[A-Za-z0-9_-]+)-(?P<number>\d{5,})\.idx\.jsonl$")


class PoolError(ValueError):
    """Something in a pool folder is torn, foreign or in another writer's hands."""


class ShardHeader(msgspec.Struct, frozen=True, tag_field="kind", tag="header"):
    """First line of an index: whose it is and how to read it."""

    format: str
    version: int
    writer: str
    number: int


class SampleLine(msgspec.Struct, frozen=True, tag_field="kind", tag="sample"):
    """One sample that is safely on disk: where it lies, and what a reader needs before opening it.

    ``rejected_category_ids`` holds the class of each rejected region of a rescued canvas; pools written
    before it was kept have none. Fields that older pools have beside these are passed over.
    """

    sample_id: str
    index: int
    offset: int
    size: int
    crc32: int
    category_ids: tuple[int, ...]
    num_regions: int
    rejected: dict[str, int]
    time_s: float
    rejected_category_ids: tuple[int, ...] = ()


class DroppedLine(msgspec.Struct, frozen=True, tag_field="kind", tag="dropped"):
    """One request whose canvas was dropped: no bytes, but it must not be drawn again.

    ``regions`` holds ``(category_id, rule that rejected it or None)`` of each region; pools written before it
    was kept have none.
    """

    sample_id: str
    index: int
    num_regions: int
    rejected: dict[str, int]
    time_s: float
    regions: tuple[tuple[int, str | None], ...] = ()


class SealLine(msgspec.Struct, frozen=True, tag_field="kind", tag="sealed"):
    """Last line of an index: the shard holds ``size`` acknowledged bytes and will not grow."""

    size: int


class EvictedLine(msgspec.Struct, frozen=True, tag_field="kind", tag="evicted"):
    """What is left of a shard that was dropped to make room: the requests it answered, and its counts."""

    writer: str
    number: int
    size_bytes: int
    num_regions: int
    rejected: dict[str, int]
    sample_ids: tuple[str, ...]
    dropped_ids: tuple[str, ...]


IndexLine = ShardHeader | SampleLine | DroppedLine | SealLine | EvictedLine

_decode_line = msgspec.json.Decoder(IndexLine).decode
_encode_line = msgspec.json.Encoder().encode


def index_path(folder: Path, writer_name: str, number: int) -> Path:
    """Return the path of an index file; its shard is the same name ending in ``.tar``."""
    return folder / f"shard-{writer_name}-{number:05d}.idx.jsonl"


def shard_path(index: Path) -> Path:
    """Return the tar shard that an index file speaks of."""
    return index.with_name(shard_stem(index) + ".tar")


def shard_stem(index: Path) -> str:
    """Return what an index file and its shard have in common: ``shard-<writer>-<number>``."""
    return index.name.removesuffix(".idx.jsonl")


def split_index_name(name: str) -> tuple[str, int] | None:
    """Return ``(writer, number)`` of an index file's name, or None for any other file."""
    match = _INDEX_NAME.match(name)
    return (match["writer"], int(match["number"])) if match else None


def list_indexes(folder: Path, writer_name: str | None = None) -> list[Path]:
    """Return the index files of a pool folder, of one writer or of all, in order of writer and number."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except FileNotFoundError:
        return []
    keyed = [(split_index_name(name), name) for name in names]
    wanted = [(key, name) for key, name in keyed if key and writer_name in (None, key[0])]
    return [folder / name for _, name in sorted(wanted)]


def shards_without_index(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return writer and number of the shards, among the file names of a pool, that have lost their index."""
    known = set(names)
    indexes = (name.removesuffix(".tar") + ".idx.jsonl" for name in known if name.endswith(".tar"))
    return sorted(key for index in indexes if index not in known and (key := split_index_name(index)))


def encode_line(line: IndexLine) -> bytes:
    """Return one index line as JSON bytes with its line end."""
    return _encode_line(line) + b"\n"


def parse_line(text: bytes) -> IndexLine:
    """Return the index line that ``encode_line`` wrote."""
    return _decode_line(text)


def parse_lines(raw: bytes, path: Path, *, with_header: bool) -> list[IndexLine]:
    """Return the lines of ``raw``, which must end with a line end; the header is checked and left out.

    Args:
        raw: complete lines of one index file.
        path: the index file, for the message.
        with_header: True when ``raw`` starts at the start of the file.

    Returns:
        The sample, dropped and seal lines, in file order.

    Raises:
        PoolError: if a line is not of this format, or if the header is missing, foreign or of another
            version.
    """
    lines: list[IndexLine] = []
    for number, text in enumerate(raw.splitlines()):
        try:
            lines.append(_decode_line(text))
        except msgspec.DecodeError as error:
            start = text[:60].decode(errors="replace")
            raise PoolError(f"{path.name}: line {number} is not a pool's ({error}): {start!r}") from error
    if with_header and lines:
        _check_header(lines[0], path)
        return lines[1:]
    return lines


def _check_header(line: IndexLine, path: Path) -> None:
    if not isinstance(line, ShardHeader) or line.format != FORMAT_NAME:
        raise PoolError(f"{path.name}: the first line must be a header of format {FORMAT_NAME!r}, got {line}")
    if line.version != FORMAT_VERSION:
        raise PoolError(f"{path.name}: format version {line.version}, this program reads {FORMAT_VERSION}")
    if (line.writer, line.number) != split_index_name(path.name):
        raise PoolError(f"{path.name}: the header names writer {line.writer!r}, shard {line.number}")


def complete_lines(raw: bytes) -> bytes:
    """Return ``raw`` up to and with its last line end: what was written to the end."""
    return raw[: raw.rfind(b"\n") + 1]


def fsync_folder(folder: Path) -> None:
    """Put the folder's own entries on disk: names made and names gone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, in as many calls as the system takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def acknowledged_bytes(lines: Iterable[IndexLine]) -> int:
    """Return how many bytes of the tar the lines speak of, in bytes from its start."""
    return max((line.offset + line.size for line in lines if isinstance(line, SampleLine)), default=0)


def read_span(path: Path, offset: int, size: int, crc32: int) -> bytes:
    """Read one sample's span of a shard and check it against the checksum that its index line gave.

    Args:
        path: the tar shard.
        offset: start of the span, in bytes.
        size: length of the span, in bytes.
        crc32: checksum of the span.

    Returns:
        ``size`` bytes: the sample's tar members with their headers and padding.

    Raises:
        PoolError: if the shard is missing or shorter than the span, or if the checksum differs.
    """
    try:
        span = _read_part(path, offset, size)
    except FileNotFoundError as error:
        raise PoolError(f"{path.name}: missing, its index speaks of {size} bytes at {offset}") from error
    if len(span) != size:
        raise PoolError(f"{path.name}: torn, {len(span)} of {size} bytes are left at {offset}")
    if zlib.crc32(span) != crc32:
        found = zlib.crc32(span)
        raise PoolError(f"{path.name}: checksum {found:08x} at {offset}, the index says {crc32:08x}")
    return span


def _read_part(path: Path | str, offset: int, size: int) -> bytes:
    """Return up to ``size`` bytes from ``offset`` on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


class IndexTail:
    """Follows one index file while its writer appends to it; a half-written line waits for its end.

    Args:
        path: the index file.
    """

    def __init__(self, path: Path):
        self.path, self.stem = path, shard_stem(path)
        self.is_sealed = False
        self._file, self._shard_file = os.fspath(path), os.fspath(shard_path(path))
        self._position = 0

    def read_new(self) -> list[IndexLine]:
        """Return the lines completed since the last call; all of them again if the file has shrunk."""
        if self.is_sealed:
            return []
        size = os.stat(self._file).st_size
        if size < self._position:
            self._position = 0
        if size == self._position:
            return []
        raw = complete_lines(_read_part(self._file, self._position, size - self._position))
        lines = parse_lines(raw, self.path, with_header=self._position == 0)
        self._position += len(raw)
        self.is_sealed = any(isinstance(line, SealLine) for line in lines)
        return lines

    def shard_bytes(self) -> int:
        """Return how long the shard is, in bytes; a FileNotFoundError tells that there is none."""
        return os.stat(self._shard_file).st_size
