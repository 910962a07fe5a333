import os

import pytest

from mflight.synthesis.pool.folder import PoolReader, PoolWriter
from mflight.synthesis.pool.inspection import find_unacknowledged
from tests.unit.synthesis.squares import make_sample

SHARD, INDEX = "shard-w0-00000.tar", "shard-w0-00000.idx.jsonl"


@pytest.fixture
def pool(tmp_path):
    with PoolWriter(tmp_path, "w0") as writer:
        for index in range(3):
            writer.append(make_sample(index), index=index)
    return tmp_path


def test_a_whole_pool_and_no_pool_hold_nothing_of_the_kind(pool):
    assert find_unacknowledged(pool) == {}
    assert find_unacknowledged(pool / "later") == {}


def test_a_torn_line_is_told(pool):
    os.truncate(pool / INDEX, (pool / INDEX).stat().st_size - 5)
    ((name, said),) = find_unacknowledged(pool).items()
    assert name == INDEX and "torn line" in said


def test_samples_without_a_line_are_told_with_their_bytes(pool):
    lines = (pool / INDEX).read_bytes().splitlines(keepends=True)
    (pool / INDEX).write_bytes(b"".join(lines[:-1]))
    known = sum(ref.size for ref in PoolReader(pool).poll())
    missing = (pool / SHARD).stat().st_size - known
    assert missing > 512
    assert find_unacknowledged(pool) == {SHARD: f"holds {missing} bytes that its index does not speak of"}


def test_a_shard_without_index_is_told_with_its_bytes(pool):
    (pool / INDEX).unlink()
    size = (pool / SHARD).stat().st_size
    assert find_unacknowledged(pool) == {SHARD: f"holds {size} bytes and has no index"}
    with PoolWriter(pool, "w0"):
        assert find_unacknowledged(pool) == {}


def test_what_a_living_writer_has_under_way_is_no_damage(pool):
    with PoolWriter(pool, "w0"):
        with open(pool / SHARD, "ab") as shard:
            shard.write(bytes(512))
        assert find_unacknowledged(pool) == {}
    assert find_unacknowledged(pool) == {SHARD: "holds 512 bytes that its index does not speak of"}
