import errno
import json
import os
import sqlite3
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from mflight.synthesis.pool.index import PoolError, PoolIndex, RequestAnswer
from mflight.synthesis.pool.packing import decode_sample, encode_sample
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.writer import PoolWriter, SeriesCounts
from tests.unit.synthesis.squares import make_sample


def fill(folder, count, start=0, **settings):
    with PoolWriter(folder, "w0", **settings) as writer:
        for index in range(start, start + count):
            writer.append(make_sample(index), index=index)


def read_ids(folder):
    reader = PoolReader(folder)
    return [reader.read(ref).sample_id for ref in reader.poll()]


def test_png_sample_comes_back_exactly_and_jpeg_nearly(tmp_path):
    for image_format, tolerance in (("png", 0), ("jpeg", 40)):
        sample = make_sample(3)
        with PoolWriter(tmp_path / image_format, "w0", image_format=image_format) as writer:
            writer.append(sample, index=3)
        reader = PoolReader(tmp_path / image_format)
        (ref,) = reader.poll()
        back = reader.read(ref)
        assert (ref.index, ref.category_ids) == (3, (2,))
        assert np.abs(back.image.astype(int) - sample.image).max() <= tolerance
        assert back.annotations == sample.annotations
        assert back.regions == sample.regions
        assert back.provenance == {"index": 3}


def test_shard_is_a_plain_tar(tmp_path):
    fill(tmp_path, 5, shard_samples=2)
    with tarfile.open(tmp_path / "shard-w0-00001.tar") as archive:
        names = archive.getnames()
    assert names == ["7-00000002.jpg", "7-00000002.json", "7-00000003.jpg", "7-00000003.json"]


def test_pool_modules_import_no_torch():
    modules = "mflight.synthesis.pool.writer, mflight.synthesis.worker, mflight.synthesis.planner"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_second_writer_of_a_name_is_refused_and_another_name_is_not(tmp_path):
    with PoolWriter(tmp_path, "w0") as writer:
        with pytest.raises(PoolError, match=rf"'w0' is in use by pid {os.getpid()} on"):
            PoolWriter(tmp_path, "w0")
        writer.append(make_sample(0), index=0)
        with PoolWriter(tmp_path, "w1") as other:
            other.append(make_sample(1), index=1)
    fill(tmp_path, 1, 2)
    assert read_ids(tmp_path) == ["7-00000000", "7-00000001", "7-00000002"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    said = rf"pool_dir={tmp_path} lies on a file .*no locks \(flock: {os.strerror(number)}"
    with pytest.raises(PoolError, match=said):
        PoolWriter(tmp_path, "w0")


def test_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import os, sys; from mflight.synthesis.pool.writer import PoolWriter\n"
        "writer = PoolWriter(sys.argv[1], 'w0'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    fill(tmp_path, 1)
    assert read_ids(tmp_path) == ["7-00000000"]


def test_bad_names_and_images_are_refused(tmp_path):
    with pytest.raises(PoolError, match="'a/b'"):
        PoolWriter(tmp_path, "a/b")
    sample = make_sample(0)
    with PoolWriter(tmp_path, "w0") as writer:
        with pytest.raises(PoolError, match=r"'\.\./x'"):
            writer.append(type(sample)("../x", sample.image, [], [], {}))
        with pytest.raises(PoolError, match=r"float64\[2, 2, 3\]"):
            writer.append(type(sample)("x", np.zeros((2, 2, 3)), [], [], {}))


def test_an_id_that_would_be_a_path_is_not_read():
    with pytest.raises(PoolError, match=r"letters, digits, '_' or '-', the pool holds '\.\./x'"):
        decode_sample(encode_sample(make_sample(0), "png", 90), "../x")


@pytest.mark.parametrize("size", [-512, -100, 2**60])
def test_a_member_that_says_an_impossible_size_is_not_read(size):
    header = tarfile.TarInfo("7-00000000.jpg")
    header.size = size
    with pytest.raises(PoolError, match=f"7-00000000.jpg of {size} bytes"):
        decode_sample(
            header.tobuf(tarfile.GNU_FORMAT) + encode_sample(make_sample(0), "png", 90), "7-00000000"
        )


def test_a_sample_is_seen_only_after_its_bytes_are_on_disk_and_only_once(tmp_path, monkeypatch):
    reader = PoolReader(tmp_path)
    assert reader.poll() == []
    real_fsync, seen = os.fsync, []

    def look_first(descriptor):
        seen.extend(PoolReader(tmp_path).poll())
        real_fsync(descriptor)

    with PoolWriter(tmp_path, "w0") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", look_first)
            writer.append(make_sample(0), index=0)
        assert seen == [] and [ref.sample_id for ref in reader.poll()] == ["7-00000000"]
        assert reader.poll() == [] == read_ids(tmp_path)[1:]


def test_each_opening_begins_a_shard_and_so_does_a_full_one(tmp_path):
    for start in range(0, 9, 3):
        fill(tmp_path, 3, start, shard_samples=2)
    PoolWriter(tmp_path, "w0").close()  # nothing to say: no shard
    assert read_ids(tmp_path) == [f"7-{index:08d}" for index in range(9)]
    assert len(list(tmp_path.glob("*.tar"))) == 6
    fill(tmp_path, 2, 9, shard_bytes=1)
    assert sorted(path.name for path in tmp_path.glob("*.tar"))[-1] == "shard-w0-00007.tar"


def test_counts_are_those_of_the_whole_series(tmp_path):
    bad = [
        {"category_id": 2, "box": [0, 0, 8, 8], "rejected": rule} for rule in ("area", "area", "components")
    ]
    for index in range(2):
        with PoolWriter(tmp_path, "w0") as writer:
            writer.append(make_sample(index), index=index)
            writer.drop(f"7-{index + 10:08d}", bad, index=index + 10)
    with PoolWriter(tmp_path, "w1") as writer:
        assert writer.counts == SeriesCounts(0, 0, 0, 0, {})
    with PoolWriter(tmp_path, "w0") as writer:
        counts = writer.counts
    assert (counts.samples, counts.dropped, counts.regions) == (2, 2, 8)
    assert counts.rejected == {"area": 4, "components": 2}
    assert counts.size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert PoolReader(tmp_path).ids("dropped") == {"7-00000010", "7-00000011"}


def test_a_request_is_answered_once(tmp_path):
    fill(tmp_path, 2)
    with PoolWriter(tmp_path, "w1") as other:
        other.append(make_sample(1), index=1)
        assert other.counts.samples == 0
    assert read_ids(tmp_path) == ["7-00000000", "7-00000001"]


@pytest.mark.parametrize("statement", ["fsync", "INSERT"])
def test_a_refusing_disk_leaves_the_series_as_it_was(tmp_path, monkeypatch, statement):
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(make_sample(0), index=0)
        shard = tmp_path / "shard-w0-00000.tar"
        size = shard.stat().st_size

        def refuse(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            if statement == "fsync":
                patch.setattr(os, "fsync", refuse)
            else:
                patch.setattr(PoolIndex, "add", refuse)
            with pytest.raises(OSError, match="No space left"):
                writer.append(make_sample(1), index=1)
        assert shard.stat().st_size == size
        writer.append(make_sample(2), index=2)
    assert read_ids(tmp_path) == ["7-00000000", "7-00000002"]


def test_a_full_disk_is_told_as_one_by_the_index_too(tmp_path):
    fill(tmp_path, 1)
    index = PoolIndex(tmp_path)
    index.change(f"PRAGMA max_page_count = {index.value('PRAGMA page_count')}")
    with pytest.raises(OSError, match=r"No space left on device \(pool.db: database or disk is full\)"):
        with index.transaction():
            for number in range(1000):
                answer = RequestAnswer(f"7-{number + 10:08d}", number + 10, ((2, None),) * 9)
                index.add(answer, "w1", None, 0, b"")
    assert not index.is_answered("7-00000010")
    index.close()


def test_a_pool_is_read_and_asked_with_stock_tools(tmp_path):
    fill(tmp_path, 3)
    query = "SELECT state, count(*) FROM requests GROUP BY state"
    with sqlite3.connect(tmp_path / "pool.db") as index:
        assert index.execute(query).fetchall() == [("kept", 3)]
    command = ["tar", "xOf", str(tmp_path / "shard-w0-00000.tar"), "7-00000001.json"]
    told = subprocess.run(command, check=True, capture_output=True).stdout
    assert json.loads(told)["provenance"] == {"index": 1}
