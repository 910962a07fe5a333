"""Pools that were killed, cut or robbed of their index: what is whole is kept, what is gone drawn again."""

import os
import shutil

import pytest

from mflight.synthesis.pool.index import INDEX_NAME, PoolError, PoolIndex
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.recovery import find_unacknowledged
from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.squares import make_sample

SHARD = "shard-w0-00000.tar"


def name(index):
    return f"7-{index:08d}"


def fill(folder, count, start=0, writer_name="w0"):
    with PoolWriter(folder, writer_name, image_format="png") as writer:
        for index in range(start, start + count):
            writer.append(make_sample(index), index=index)


def reopen(folder, writer_name="w0"):
    PoolWriter(folder, writer_name).close()


@pytest.fixture(scope="module")
def six_samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    fill(folder, 6)
    with PoolWriter(folder, "w0") as writer:
        writer.drop(name(6), [{"category_id": 2, "rejected": "area"}], index=6)
    return folder


@pytest.fixture
def pool(six_samples, tmp_path):
    return shutil.copytree(six_samples, tmp_path / "pool")


def read_ids(folder):
    reader = PoolReader(folder)
    return [reader.read(ref).sample_id for ref in reader.poll()]


def is_answered(folder, index):
    opened = PoolIndex(folder)
    try:
        return opened.is_answered(name(index))
    finally:
        opened.close()


@pytest.mark.parametrize("sixteenth", range(17))
def test_a_cut_shard_loses_what_was_cut_and_nothing_else(pool, sixteenth, caplog):
    early, size = PoolReader(pool), (pool / SHARD).stat().st_size
    assert len(early.poll()) == 6
    os.truncate(pool / SHARD, size * sixteenth // 16)
    whole = size * sixteenth // 16 // (size // 6)
    kept = read_ids(pool)
    assert kept == [name(index) for index in range(whole)]
    reader = PoolReader(pool)
    reader.poll()
    assert reader.set_aside.keys() == ({SHARD} if whole < 6 else set())
    assert caplog.text.count(f"{SHARD}: torn, {size * sixteenth // 16} bytes are left") == 2 * (whole < 6)
    reopen(pool, "w1")  # any writer sees it
    missing = [index for index in range(6) if not is_answered(pool, index)]
    assert missing == list(range(whole, 6)) and is_answered(pool, 6)
    with PoolWriter(pool, "w0") as writer:
        assert writer.counts.samples == whole
        for index in missing:
            writer.append(make_sample(index), index=index)
    assert read_ids(pool) == [name(index) for index in range(6)]
    assert [ref.sample_id for ref in early.poll()] == [name(index) for index in missing]
    assert list(early.newly_evicted) == [] and (pool / SHARD).stat().st_size == whole * size // 6


@pytest.mark.parametrize("sixteenth", range(17))
def test_a_cut_index_is_told_kept_and_made_again_from_the_shards(pool, sixteenth, caplog):
    early, before = PoolReader(pool), (pool / SHARD).read_bytes()
    assert len(early.poll()) == 6
    index = pool / INDEX_NAME
    os.truncate(index, index.stat().st_size * sixteenth // 16)
    cut, is_whole = index.read_bytes(), sixteenth == 16
    reader = PoolReader(pool)
    assert len(reader.poll()) == (6 if is_whole else 0) and (INDEX_NAME in reader.set_aside) != is_whole
    assert (INDEX_NAME in find_unacknowledged(pool)) != is_whole
    reopen(pool, "w1")
    assert read_ids(pool) == [name(index) for index in range(6)]
    assert is_answered(pool, 6) == is_whole  # a dropped canvas is drawn again: it gives nothing again
    assert (pool / SHARD).read_bytes() == before and find_unacknowledged(pool) == {}
    if not is_whole:
        assert "kept as damaged-0.db" in caplog.text and (pool / "damaged-0.db").read_bytes() == cut
        assert [ref.sample_id for ref in early.poll()] == [name(index) for index in range(6)]
    assert [ref.sample_id for ref in reader.poll()] == ([] if is_whole else [name(i) for i in range(6)])


def test_an_index_of_noise_and_one_that_is_gone_are_made_again_too(pool):
    for _ in range(2):
        (pool / INDEX_NAME).write_bytes(b"\x80\x04 a pickle" * 500)
        reopen(pool)
        assert read_ids(pool) == [name(index) for index in range(6)]
    assert len(list(pool.glob("damaged-*.db"))) == 2
    (pool / INDEX_NAME).unlink()
    assert find_unacknowledged(pool) == {
        SHARD: f"holds {(pool / SHARD).stat().st_size} bytes that its index does not speak of"
    }
    reopen(pool)
    assert read_ids(pool) == [name(index) for index in range(6)]


def test_samples_that_a_kill_kept_from_the_index_are_taken_in(pool, caplog):
    index = PoolIndex(pool)
    index.change("DELETE FROM requests WHERE request_index IN (4, 5)")
    index.close()
    ((told, said),) = find_unacknowledged(pool).items()
    assert told == SHARD and "bytes that its index does not speak of" in said
    before = (pool / SHARD).read_bytes()
    reopen(pool, "w1")  # not its series
    assert len(read_ids(pool)) == 4
    reopen(pool)
    assert read_ids(pool) == [name(index) for index in range(6)]
    assert f"{SHARD}: the index takes in 2 samples" in caplog.text
    assert (pool / SHARD).read_bytes() == before and find_unacknowledged(pool) == {}


@pytest.mark.parametrize("num_bytes", [1, 511, 700, -1])
def test_only_a_torn_end_is_cut_and_a_new_shard_begins_behind(pool, caplog, num_bytes):
    whole = (pool / SHARD).read_bytes()
    (pool / SHARD).write_bytes(whole + whole[: len(whole) // 6][:num_bytes])
    reopen(pool, "w1")
    assert (pool / SHARD).stat().st_size > len(whole)
    fill(pool, 1, start=7)
    assert "no whole sample and are cut" in caplog.text
    assert (pool / SHARD).read_bytes() == whole and len(read_ids(pool)) == 7
    assert (pool / "shard-w0-00001.tar").exists() and find_unacknowledged(pool) == {}


def test_a_foreign_end_is_kept_and_told(pool, caplog):
    whole = (pool / SHARD).read_bytes()
    foreign = (pool / SHARD).with_name("shard-w0-00003.tar")
    foreign.write_bytes(b"no tar at all " * 100)
    with (pool / SHARD).open("ab") as shard:
        shard.write(b"something else " * 100)
    fill(pool, 1, start=7)
    assert (pool / SHARD).read_bytes() == whole + b"something else " * 100
    assert foreign.read_bytes() == b"no tar at all " * 100 and (pool / "shard-w0-00004.tar").exists()
    assert caplog.text.count("are no sample; they are kept and not read") == 2
    assert find_unacknowledged(pool).keys() == {SHARD, foreign.name}
    assert len(read_ids(pool)) == 7


def test_a_shard_that_is_gone_is_told_and_drawn_again(pool):
    (pool / SHARD).unlink()
    reader = PoolReader(pool)
    assert reader.poll() == [] and "torn, 0 bytes are left" in reader.set_aside[SHARD]
    reopen(pool, "w1")
    assert not is_answered(pool, 0)


def test_corrupted_member_is_refused_by_its_checksum(pool):
    reader = PoolReader(pool)
    refs = reader.poll()
    with open(pool / SHARD, "r+b") as shard:
        shard.seek(refs[1].offset + 700)
        shard.write(b"\xff\x00\xff")
    assert reader.read(refs[0]).sample_id == name(0)
    said = rf"checksum \w{{8}} at {refs[1].offset}, the index says {refs[1].crc32:08x}"
    with pytest.raises(PoolError, match=said):
        reader.read(refs[1])
    assert reader.read(refs[2]).sample_id == name(2)


def test_what_a_living_writer_has_under_way_is_no_damage(pool, tmp_path):
    assert find_unacknowledged(tmp_path / "later") == {} == find_unacknowledged(pool)
    with PoolWriter(pool, "w0"):
        with open(pool / SHARD, "ab") as shard:
            shard.write(bytes(512))
        assert find_unacknowledged(pool) == {}
    assert find_unacknowledged(pool) == {SHARD: "holds 512 bytes that its index does not speak of"}


def test_other_files_are_left_alone(pool):
    (pool / "notes.txt").write_text("not ours")
    (pool / "shard-x.tar").write_text("not ours")
    reopen(pool)
    assert (pool / "notes.txt").exists() and (pool / "shard-x.tar").read_text() == "not ours"


@pytest.mark.parametrize("opened", [PoolReader, PoolIndex, lambda folder: PoolWriter(folder, "w0")])
def test_pools_of_other_versions_are_refused(pool, opened):
    index = PoolIndex(pool)
    index.change("PRAGMA user_version = 9")
    index.close()
    with pytest.raises(PoolError, match="says format version 9, this program reads 2"):
        opened(pool)
    (pool / "pool.json").write_text('{"format": "mflight-pool", "version": 1}')
    with pytest.raises(PoolError, match=rf"pool {pool} was written by an older version of mflight"):
        opened(pool)
