"""Acceptance by class, followed from the index lines of a real pool."""

from dataclasses import replace

from mflight.synthesis.pool.acceptance import AcceptanceCounts
from mflight.synthesis.pool.folder import PoolReader, PoolWriter
from mflight.synthesis.pool.shards import SampleLine
from tests.unit.synthesis.squares import make_sample


def region(category_id, rejected=None):
    return {"category_id": category_id, "box": [0, 0, 32, 32], "rejected": rejected}


def test_kept_rescued_and_dropped_regions_are_counted_by_class(tmp_path):
    reader = PoolReader(tmp_path)
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(make_sample(0, category_id=2), index=0)
        reader.poll()
        assert (reader.acceptance.num_drawn, reader.acceptance.num_kept) == ({2: 1}, {2: 1})
        regions = [region(2), region(9, "too_small"), region(9, "torn")]
        writer.append(replace(make_sample(1, category_id=2), regions=regions), index=1)
        writer.drop("7-00000002", [region(2), region(9, "torn")], index=2)
        reader.poll()
        reader.poll()
    for one in (reader, PoolReader(tmp_path)):  # a reader that comes later finds the same
        one.poll()
        assert (one.acceptance.num_drawn, one.acceptance.num_kept) == ({2: 3, 9: 3}, {2: 2})


def test_lines_of_older_pools_count_what_they_tell():
    line = SampleLine("7-0", 0, 0, 10, 0, (2, 2, 5), 4, {"too_small": 1}, 0.0)
    counts = AcceptanceCounts()
    counts.add(line)
    assert (counts.num_drawn, counts.num_kept) == ({2: 2, 5: 1}, {2: 2, 5: 1})
