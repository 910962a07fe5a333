"""The alternative to a pool: two files a sample, whole once it has its name, found by a listing."""

import os
import time
from collections import deque
from contextlib import suppress

import msgspec
from stored_sample import PICTURE_BYTES

from mflight.synthesis.pool.packing import EncodedSample


class LooseSeries:
    """Writes this writer's share and removes its own oldest samples, to hold its part of the bound."""

    def __init__(self, load, place):
        self.folder, self.kept = load.folder, deque()
        self.left = iter([[index] for index in range(place, load.samples, load.writers)])
        self.max_kept = max(1, load.max_bytes // load.writers // (PICTURE_BYTES + 4000))

    def take(self):
        return next(self.left, None)

    def append(self, sample, index):
        about = {
            "annotations": sample.annotations,
            "regions": sample.regions,
            "provenance": sample.provenance,
        }
        self._write(f"{sample.sample_id}.jpg", sample.picture)
        self._write(f"{sample.sample_id}.json", msgspec.json.encode(about))
        self.kept.append(sample.sample_id)
        if len(self.kept) > self.max_kept:
            oldest = self.kept.popleft()
            for suffix in ("json", "jpg"):
                os.unlink(self.folder / f"{oldest}.{suffix}")

    def _write(self, name, data):
        with open(self.folder / f".{name}", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(self.folder / f".{name}", self.folder / name)


def loose_samples(load, rank, categories, shared, place):
    from mflight.synthesis.pool.reuse import hash_of
    from mflight.synthesis.pool_target import to_target

    seen = set()
    while True:
        is_over = shared.end.is_set()
        names = {entry.name for entry in os.scandir(load.folder) if entry.name.endswith(".json")}
        fresh = [name for name in names - seen if not name.startswith(".")]
        seen = names
        for name in sorted(name for name in fresh if hash_of(name) % load.readers == rank):
            path = load.folder / name
            with suppress(FileNotFoundError):  # it has made room
                about = msgspec.json.decode(path.read_bytes())
                sample = EncodedSample(path.stem, path.with_suffix(".jpg").read_bytes(), **about)
                yield to_target(sample, categories, 0)
        if is_over:
            return
        time.sleep(0.5)
