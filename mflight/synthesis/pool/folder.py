"""The pool of synthetic images: a folder that generators append to and trainers read. No torch, no pickle."""

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mflight.synthesis.pool.acceptance import AcceptanceCounts
from mflight.synthesis.pool.follow import PoolTail
from mflight.synthesis.pool.numbered_names import NumberedNames
from mflight.synthesis.pool.packing import (
    EncodedSample,
    PoolSample,
    decode_sample,
    describe_dropped,
    describe_sample,
    encode_sample,
    unpack_sample,
)
from mflight.synthesis.pool.series import SeriesCounts, ShardSeries
from mflight.synthesis.pool.shards import (
    FORMAT_NAME,
    FORMAT_VERSION,
    DroppedLine,
    IndexLine,
    PoolError,
    SampleLine,
    read_span,
)
from mflight.synthesis.pool.signals import write_json


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one acknowledged sample lies: small, picklable, enough to read it from any process.

    Attributes:
        sample_id: the sample's name.
        index: number of the request that it answers; gives samples an order that no race can change.
        shard: file name of the tar shard.
        offset: start of the span in the shard, in bytes.
        size: length of the span, in bytes.
        crc32: checksum of the span.
        category_ids: of the instances in the image.
    """

    sample_id: str
    index: int
    shard: str
    offset: int
    size: int
    crc32: int
    category_ids: tuple[int, ...]


class PoolWriter:
    """Appends samples to one writer's series of shards; a sample counts once its index line is on disk.

    A name that a living writer holds, and a folder of another format, are refused with a ``PoolError``. When
    the disk refuses (``OSError``), nothing of the sample is acknowledged and the writer can go on.

    Args:
        folder: the pool folder; made if absent.
        writer_name: whose series it is; one living writer a name.
        image_format: ``"jpeg"`` or ``"png"`` (lossless, about six times the bytes and slower).
        jpeg_quality: 1 to 100.
        shard_samples: a shard is sealed at this number of samples.
        shard_bytes: a shard is sealed at this number of bytes.
    """

    def __init__(
        self,
        folder: str | Path,
        writer_name: str,
        *,
        image_format: Literal["jpeg", "png"] = "jpeg",
        jpeg_quality: int = 95,
        shard_samples: int = 1000,
        shard_bytes: int = 256 * 2**20,
    ):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not check_pool_format(folder):
            write_json(folder / "pool.json", {"format": FORMAT_NAME, "version": FORMAT_VERSION})
        self._image_format, self._jpeg_quality = image_format, jpeg_quality
        self._series = ShardSeries(folder, writer_name, shard_samples=shard_samples, shard_bytes=shard_bytes)

    @property
    def counts(self) -> SeriesCounts:
        """What this writer's series has held from its first day on, evicted shards included."""
        return self._series.counts

    def append(self, sample: PoolSample | EncodedSample, *, index: int = 0) -> None:
        """Put a sample on disk and acknowledge it.

        Args:
            sample: the image and its instances; an encoded one is stored as it is.
            index: number of the request that it answers.
        """
        span = encode_sample(sample, self._image_format, self._jpeg_quality)
        self.append_packed(span, describe_sample(sample, index))

    def append_packed(self, span: bytes, line: SampleLine) -> None:
        """Put a sample on disk that ``encode_sample`` and ``describe_sample`` have packed elsewhere."""
        self._series.append(span, line)

    def drop(self, sample_id: str, regions: list[dict[str, Any]], *, index: int = 0) -> None:
        """Acknowledge a request whose canvas was dropped, so that no restart draws it again.

        Args:
            sample_id: the id that the sample would have had.
            regions: its regions, with the rules that rejected them.
            index: number of the request.
        """
        self.record(describe_dropped(sample_id, regions, index))

    def record(self, line: DroppedLine) -> None:
        """Acknowledge a dropped canvas that ``describe_dropped`` has described elsewhere."""
        self._series.record(line)

    def close(self) -> None:
        """Close the files and free the name."""
        self._series.close()

    def __enter__(self) -> "PoolWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PoolReader:
    """Follows the indexes of a pool folder and reads samples by place; any number of readers may do so.

    What is torn or foreign is logged once, noted in ``set_aside`` (file, or shard and offset, to the reason)
    and never read; a folder of another format is refused with a ``PoolError``. What it holds grows with the
    samples that are in the pool, not with those that were. ``acceptance`` counts the regions by class.

    Args:
        folder: the pool folder; it may appear later.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.acceptance = AcceptanceCounts()
        self._tail = PoolTail(self.folder)
        self._places: dict[str, tuple[str, int, int]] = {}
        self._ids_in_shard: dict[str, list[str]] = {}
        self._evicted_ids = NumberedNames()
        self._newly_evicted: list[str] = []
        check_pool_format(self.folder)

    @property
    def set_aside(self) -> dict[str, str]:
        """What was torn or foreign, and why."""
        return self._tail.set_aside

    @property
    def dropped_ids(self) -> Set[str]:
        """The requests whose canvases were dropped."""
        return self._tail.dropped_ids

    @property
    def evicted_ids(self) -> Set[str]:
        """The samples that have made room for others."""
        return self._evicted_ids

    @property
    def newly_evicted(self) -> Sequence[str]:
        """Ids of the samples that ``poll`` had returned before and that its last call found evicted."""
        return self._newly_evicted

    def poll(self) -> list[SampleRef]:
        """Return the samples acknowledged since the last call, in order of their requests.

        A sample that comes again at another place (its first shard was damaged) is returned again.
        """
        self._newly_evicted = []
        for stem, line in self._tail.read_evicted():
            self._evicted_ids.update(line.sample_ids)
            self._forget(f"{stem}.tar")
        refs: list[SampleRef] = []
        for stem, lines in self._tail.read_new():
            for line in lines:
                self.acceptance.add(line)
            refs.extend(self._new_refs(f"{stem}.tar", lines))
        return sorted(refs, key=lambda ref: (ref.index, ref.sample_id))

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

    def _forget(self, shard: str) -> None:
        for sample_id in self._ids_in_shard.pop(shard, ()):
            place = self._places.get(sample_id)
            if place is not None and place[0] == shard:
                del self._places[sample_id]
                self._newly_evicted.append(sample_id)

    def _new_refs(self, shard: str, lines: list[IndexLine]) -> list[SampleRef]:
        refs = []
        for line in lines:
            if not isinstance(line, SampleLine):
                continue
            place = (shard, line.offset, line.crc32)
            if self._places.get(line.sample_id) != place:
                self._places[line.sample_id] = place
                self._ids_in_shard.setdefault(shard, []).append(line.sample_id)
                refs.append(
                    SampleRef(
                        sample_id=line.sample_id,
                        index=line.index,
                        shard=shard,
                        offset=line.offset,
                        size=line.size,
                        crc32=line.crc32,
                        category_ids=line.category_ids,
                    )
                )
        return refs


def check_pool_format(folder: Path) -> bool:
    """Return whether the folder says it is a pool; False while it says nothing.

    Args:
        folder: the pool folder.

    Returns:
        True if its ``pool.json`` names this format and version.

    Raises:
        PoolError: if it says it is something else, or a pool of another version.
    """
    try:
        raw = (folder / "pool.json").read_bytes()
    except FileNotFoundError:
        return False
    try:
        said = json.loads(raw)
        name, version = said["format"], said["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise PoolError(f"{folder.name}/pool.json is not of a pool: {raw[:60]!r}") from error
    if (name, version) != (FORMAT_NAME, FORMAT_VERSION):
        raise PoolError(
            f"{folder.name}/pool.json says format {name!r} version {version}, "
            f"this program reads {FORMAT_NAME!r} version {FORMAT_VERSION}"
        )
    return True
