"""What a reader tells of a pool beside its samples."""

import subprocess
import sys
from dataclasses import replace

from mflight.synthesis.pool.index import PoolIndex
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.squares import make_sample


def region(category_id, rejected=None):
    return {"category_id": category_id, "box": [0, 0, 32, 32], "rejected": rejected}


def test_kept_rescued_and_dropped_regions_are_counted_by_class(tmp_path):
    reader = PoolReader(tmp_path)
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(make_sample(0, category_id=2), index=0)
        assert reader.acceptance()[1:] == ({2: 1}, {2: 1})
        regions = [region(2), region(9, "too_small"), region(9, "torn")]
        writer.append(replace(make_sample(1, category_id=2), regions=regions), index=1)
        writer.drop("7-00000002", [region(2), region(9, "torn")], index=2)
    assert reader.acceptance() == PoolReader(tmp_path).acceptance() == (2, {2: 3, 9: 3}, {2: 2})
    assert PoolReader(tmp_path / "later").acceptance() == (0, {}, {})


def test_a_pool_in_a_folder_that_cannot_be_written_is_read_also_after_a_kill(tmp_path):
    code = """
import os, sys
from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.squares import make_sample
writer = PoolWriter(sys.argv[1], "w0")
for index in range(3):
    writer.append(make_sample(index), index=index)
os.kill(os.getpid(), 9)
"""
    pool = tmp_path / "pool"
    assert subprocess.run([sys.executable, "-c", code, str(pool)], check=False).returncode == -9
    assert (pool / "pool.db-wal").stat().st_size > 0
    before = {path.name: path.read_bytes() for path in pool.iterdir() if not path.name.endswith("-shm")}
    for path in [*pool.iterdir(), pool]:
        path.chmod(0o555)
    assert [ref.index for ref in PoolReader(pool).poll()] == [0, 1, 2]
    assert {name: (pool / name).read_bytes() for name in before} == before
    pool.chmod(0o755)


def test_a_reader_leaves_no_file_and_waits_for_no_writer(tmp_path):
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(make_sample(0), index=0)
    names, reader = sorted(path.name for path in tmp_path.iterdir()), PoolReader(tmp_path)
    assert len(reader.poll()) == 1 and sorted(path.name for path in tmp_path.iterdir()) == names
    with PoolWriter(tmp_path, "w1") as writer:
        writer.append(make_sample(1), index=1)
        index = PoolIndex(tmp_path)
        with index.transaction():
            index.change("UPDATE requests SET uses = 9")
            assert [ref.index for ref in reader.poll()] == [1]
        index.close()
    assert len(reader.poll()) == 0 and "pool.db-wal" not in {path.name for path in tmp_path.iterdir()}


def test_a_file_system_that_is_not_known_to_be_local_gets_a_rollback_journal(tmp_path, monkeypatch):
    monkeypatch.setattr("mflight.synthesis.pool.index._LOCAL_FILE_SYSTEMS", frozenset())
    reader = PoolReader(tmp_path)
    with PoolWriter(tmp_path, "w0") as writer:
        for number in range(2):
            writer.append(make_sample(number), index=number)
            assert [ref.index for ref in reader.poll()] == [number]
        assert not (tmp_path / "pool.db-wal").exists()
    index = PoolIndex(tmp_path)
    assert index.value("PRAGMA journal_mode") == "truncate" and index.value("PRAGMA synchronous") == 2
    index.close()
    monkeypatch.undo()
    index = PoolIndex(tmp_path)
    assert index.value("PRAGMA journal_mode") == "wal"
    index.close()
