"""Appending samples to a pool. No torch, no pickle."""

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mflight.synthesis.pool.index import PoolError, PoolIndex, RequestAnswer
from mflight.synthesis.pool.locks import SeriesLock, hold_pool
from mflight.synthesis.pool.packing import EncodedSample, PoolSample, answer_of, encode_sample, verdicts
from mflight.synthesis.pool.recovery import open_index
from mflight.synthesis.pool.shards import Shard

_IS_EVICTED = "SELECT 1 FROM requests WHERE state = 'evicted' AND shard = ?"
_WRITER_NAME = re.compile(r"^[A-Za-z0-9_-]{1,60}$")
_TOTALS = """
    SELECT sum(state != 'dropped'), sum(state = 'dropped'), sum(size), sum(json_array_length(regions))
    FROM requests WHERE writer = ?
"""
_REJECTED = """
    SELECT json_extract(value, '$[1]') AS rule, count(*) FROM requests, json_each(regions)
    WHERE writer = ? AND rule IS NOT NULL GROUP BY rule
"""


@dataclass
class SeriesCounts:
    """What a writer has answered from its first day on, evicted samples included: exact after any restart."""

    samples: int
    dropped: int
    size_bytes: int
    regions: int
    rejected: Counter[str]

    @classmethod
    def of_writer(cls, index: PoolIndex, writer_name: str) -> "SeriesCounts":
        """Count what the index knows."""
        (totals,) = index.rows(_TOTALS, writer_name)
        return cls(*(total or 0 for total in totals), Counter(dict(index.rows(_REJECTED, writer_name))))

    def add(self, answer: RequestAnswer, size_bytes: int) -> None:
        """Count one answer more."""
        self.samples += answer.category_ids is not None
        self.dropped += answer.category_ids is None
        self.size_bytes += size_bytes
        self.regions += len(answer.regions)
        self.rejected.update(rule for _, rule in answer.regions if rule)


class PoolWriter:
    """Appends samples to shards of its own; a sample counts once it is on disk and the ``index`` has it.

    When the disk refuses (``OSError``), nothing of the sample is acknowledged and the writer can go on.

    Args:
        folder: the pool folder; made if absent.
        writer_name: letters, digits, ``_`` and ``-``; one living writer a name.
        image_format: ``"jpeg"`` or ``"png"`` (lossless, about six times the bytes and slower).
        jpeg_quality: 1 to 100.
        shard_samples: another shard is begun after this number of samples.
        shard_bytes: another shard is begun after this number of bytes.

    Raises:
        PoolError: if the name is of another form or a living writer holds it, if the pool is of another
            version, or if its file system gives no locks.
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
        if not _WRITER_NAME.match(writer_name):
            raise PoolError(f"a writer's name is 1 to 60 letters, digits, '_' or '-', got {writer_name!r}")
        self._folder, self._writer_name = Path(folder), writer_name
        self._image_format, self._jpeg_quality = image_format, jpeg_quality
        self._shard_samples, self._shard_bytes = shard_samples, shard_bytes
        self._shard: Shard | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = SeriesLock(self._folder, writer_name)
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._lock.release)
            with hold_pool(self._folder):
                self.index, self._next_number = open_index(self._folder, writer_name)
            self.counts = SeriesCounts.of_writer(self.index, writer_name)
            on_error.pop_all()

    def append(self, sample: PoolSample | EncodedSample, *, index: int = 0) -> None:
        """Put a sample on disk and acknowledge it.

        Args:
            sample: the image and its instances; an encoded one is stored as it is.
            index: number of the request that it answers.
        """
        span = encode_sample(sample, self._image_format, self._jpeg_quality)
        self.acknowledge(answer_of(sample, index), span)

    def drop(self, request_id: str, regions: list[dict[str, Any]], *, index: int = 0) -> None:
        """Acknowledge a request whose canvas was dropped, so that no restart draws it again.

        Args:
            request_id: the id that the sample would have had.
            regions: its regions, with the rules that rejected them.
            index: number of the request.
        """
        self.acknowledge(RequestAnswer(request_id, index, verdicts(regions)))

    def acknowledge(self, answer: RequestAnswer, span: bytes = b"") -> None:
        """Put the bytes of ``encode_sample`` on disk, if there are any, and the answer into the index."""
        while not self._try(answer, span):
            self._end_shard()

    def close(self) -> None:
        """Close the files and free the name."""
        self._end_shard()
        self.index.close()
        self._lock.release()

    def __enter__(self) -> "PoolWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _try(self, answer: RequestAnswer, span: bytes) -> bool:
        """Return whether it is acknowledged; False if the shard has been evicted by somebody else."""
        shard = self._fitting_shard() if span else None
        offset = shard.append(span) if shard else 0
        try:
            with self.index.transaction():
                if shard and self.index.value(_IS_EVICTED, shard.name):
                    return False
                is_new = self.index.add(answer, self._writer_name, shard and shard.name, offset, span)
        except BaseException:
            if shard:
                shard.cut(offset)
            raise
        if is_new:
            self.counts.add(answer, len(span))
        return True

    def _fitting_shard(self) -> Shard:
        shard = self._shard
        if shard and (shard.num_samples >= self._shard_samples or shard.size_bytes >= self._shard_bytes):
            self._end_shard()
        if self._shard is None:
            self._shard = Shard(self._folder, self._writer_name, self._next_number)
            self._next_number += 1
        return self._shard

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
