import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from mflight.synthesis.pool.folder import PoolReader, PoolWriter
from mflight.synthesis.pool.packing import decode_sample, encode_sample
from mflight.synthesis.pool.shards import PoolError
from mflight.synthesis.pool.throttle import Throttle
from tests.unit.synthesis.squares import make_sample


def fill(folder, count, start=0, **settings):
    with PoolWriter(folder, "w0", **settings) as writer:
        for index in range(start, start + count):
            writer.append(make_sample(index), index=index)


@pytest.fixture(scope="module")
def six_samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    fill(folder, 6, image_format="png")
    return folder


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    fill(folder, 6, image_format="png", shard_samples=4)
    return folder


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


def test_index_lines_of_older_pools_are_read(tmp_path):
    fill(tmp_path, 2)
    index = tmp_path / "shard-w0-00000.idx.jsonl"
    index.write_text(index.read_text().replace('"time_s"', '"demand_step":40,"time_s"'))
    assert '"demand_step":40' in index.read_text() and read_ids(tmp_path) == ["7-00000000", "7-00000001"]


def test_shard_is_a_plain_tar(tmp_path):
    fill(tmp_path, 5, shard_samples=2)
    with tarfile.open(tmp_path / "shard-w0-00001.tar") as archive:
        names = archive.getnames()
    assert names == ["7-00000002.jpg", "7-00000002.json", "7-00000003.jpg", "7-00000003.json"]


def test_pool_modules_import_no_torch():
    modules = "mflight.synthesis.pool.folder, mflight.synthesis.worker, mflight.synthesis.planner"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reader_sees_only_what_is_acknowledged(tmp_path):
    reader = PoolReader(tmp_path)
    assert reader.poll() == []
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(make_sample(0), index=0)
        index = tmp_path / "shard-w0-00000.idx.jsonl"
        whole = index.read_bytes()
        index.write_bytes(whole[:-10])  # the line is being written
        assert reader.poll() == []
        index.write_bytes(whole)
        assert [ref.sample_id for ref in reader.poll()] == ["7-00000000"]
        assert reader.poll() == []
    assert reader.set_aside == {}


def test_series_goes_on_over_restarts_and_seals_shards(tmp_path):
    for start in range(0, 9, 3):
        fill(tmp_path, 3, start, shard_samples=2)
    assert read_ids(tmp_path) == [f"7-{index:08d}" for index in range(9)]
    assert len(list(tmp_path.glob("*.tar"))) == 5
    kinds = [json.loads(line)["kind"] for line in open(tmp_path / "shard-w0-00000.idx.jsonl")]
    assert kinds == ["header", "sample", "sample", "sealed"]
    fill(tmp_path, 2, 9, shard_bytes=1)
    assert len(list(tmp_path.glob("*.tar"))) == 7


def test_counts_are_those_of_the_whole_series(tmp_path):
    bad = [
        {"category_id": 2, "box": [0, 0, 8, 8], "rejected": rule} for rule in ("area", "area", "components")
    ]
    for index in range(2):
        with PoolWriter(tmp_path, "w0") as writer:
            writer.append(make_sample(index), index=index)
            writer.drop(f"7-{index + 10:08d}", bad, index=index + 10)
    with PoolWriter(tmp_path, "w0") as writer:
        counts = writer.counts
    assert (counts.samples, counts.dropped, counts.regions) == (2, 2, 8)
    assert counts.rejected == {"area": 4, "components": 2}
    assert counts.size_bytes == (tmp_path / "shard-w0-00000.tar").stat().st_size
    reader = PoolReader(tmp_path)
    reader.poll()
    assert reader.dropped_ids == {"7-00000010", "7-00000011"}


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
        "import os, sys; from mflight.synthesis.pool.folder import PoolWriter\n"
        "writer = PoolWriter(sys.argv[1], 'w0'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    fill(tmp_path, 1)
    assert read_ids(tmp_path) == ["7-00000000"]


@pytest.mark.parametrize("sixteenth", range(17))
def test_a_cut_shard_loses_what_was_cut_and_nothing_else(six_samples, tmp_path, sixteenth):
    shutil.copytree(six_samples, tmp_path, dirs_exist_ok=True)
    shard = tmp_path / "shard-w0-00000.tar"
    size = shard.stat().st_size
    os.truncate(shard, size * sixteenth // 16)
    whole = size * sixteenth // 16 // (size // 6)
    kept = read_ids(tmp_path)
    assert kept == [f"7-{index:08d}" for index in range(whole)]
    reader = PoolReader(tmp_path)
    reader.poll()
    assert len(reader.set_aside) == 6 - whole
    missing = [index for index in range(6) if f"7-{index:08d}" not in kept]
    with PoolWriter(tmp_path, "w0") as writer:
        assert writer.counts.samples == whole
        for index in missing:
            writer.append(make_sample(index), index=index)
    assert read_ids(tmp_path) == [f"7-{index:08d}" for index in range(6)]
    assert [ref.sample_id for ref in reader.poll()] == [f"7-{index:08d}" for index in missing]


@pytest.mark.parametrize("sixteenth", range(17))
def test_a_cut_index_hides_its_tail_and_the_writer_goes_on(six_samples, tmp_path, sixteenth, caplog):
    shutil.copytree(six_samples, tmp_path, dirs_exist_ok=True)
    live = PoolReader(tmp_path)
    assert len(live.poll()) == 6
    index_file = tmp_path / "shard-w0-00000.idx.jsonl"
    os.truncate(index_file, index_file.stat().st_size * sixteenth // 16)
    kept = read_ids(tmp_path)
    assert kept == [f"7-{index:08d}" for index in range(len(kept))]
    assert len(kept) == max(0, index_file.read_bytes().count(b"\n") - 1)
    fill(tmp_path, 6 - len(kept), start=len(kept), image_format="png")
    assert ("that has lost lines; they are kept and a new shard begins" in caplog.text) == (len(kept) < 6)
    assert read_ids(tmp_path) == [f"7-{index:08d}" for index in range(6)]
    assert [ref.index for ref in live.poll()] == list(range(len(kept), 6))
    assert (tmp_path / "shard-w0-00000.tar").read_bytes() == (six_samples / "shard-w0-00000.tar").read_bytes()
    reader = PoolReader(tmp_path)
    assert len(reader.poll()) == 6 and reader.set_aside == {}


@pytest.mark.parametrize("number", [0, 3])
def test_a_shard_without_its_index_is_kept_and_told(six_samples, tmp_path, number, caplog):
    if number:
        fill(tmp_path, 2)
    orphan = tmp_path / f"shard-w0-0000{number}.tar"
    shutil.copy(six_samples / "shard-w0-00000.tar", orphan)
    fill(tmp_path, 3, start=10)
    assert orphan.read_bytes() == (six_samples / "shard-w0-00000.tar").read_bytes()
    assert f"{orphan.name}: its index is gone; its {orphan.stat().st_size} bytes are kept" in caplog.text
    assert (tmp_path / f"shard-w0-0000{number + 1}.tar").stat().st_size > 0
    assert len(read_ids(tmp_path)) == (5 if number else 3)
    reader = PoolReader(tmp_path)
    assert len(reader.poll()) == (5 if number else 3) and reader.set_aside == {}


def test_only_a_torn_member_is_cut(six_samples, tmp_path, caplog):
    shutil.copytree(six_samples, tmp_path, dirs_exist_ok=True)
    tar = tmp_path / "shard-w0-00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole + whole[:700])  # a header, and less than its picture
    fill(tmp_path, 1, start=6)
    assert "they are no whole sample and are cut" in caplog.text
    assert tar.read_bytes().startswith(whole) and len(read_ids(tmp_path)) == 7
    assert not (tmp_path / "shard-w0-00001.tar").exists()


@pytest.mark.parametrize("sixteenth", range(17))
@pytest.mark.parametrize("suffix", ["tar", "idx.jsonl"])
def test_a_cut_in_a_sealed_shard_is_told_and_what_it_lost_is_wanted_again(
    two_shards, tmp_path, sixteenth, suffix
):
    shutil.copytree(two_shards, tmp_path, dirs_exist_ok=True)
    file = tmp_path / f"shard-w0-00000.{suffix}"
    os.truncate(file, (file.stat().st_size - (1024 if suffix == "tar" else 0)) * sixteenth // 16)
    reader = PoolReader(tmp_path)
    kept = [ref.sample_id for ref in reader.poll()]
    assert kept == read_ids(tmp_path) and kept[-2:] == ["7-00000004", "7-00000005"]
    is_whole = sixteenth == 16
    assert bool(reader.set_aside) != is_whole and (len(kept) == 6 or not is_whole)
    throttle = Throttle(tmp_path)
    lost = [index for index in range(6) if not throttle.is_answered(f"7-{index:08d}")]
    assert sorted(kept + [f"7-{index:08d}" for index in lost]) == [f"7-{index:08d}" for index in range(6)]
    with PoolWriter(tmp_path, "w0") as writer:
        assert writer.counts.samples == len(kept)
        for index in lost:
            writer.append(make_sample(index), index=index)
    assert [ref.index for ref in reader.poll()] == lost
    assert read_ids(tmp_path) == [f"7-{index:08d}" for index in range(6)]


def test_corrupted_member_is_refused_by_its_checksum(tmp_path, caplog):
    fill(tmp_path, 3)
    reader = PoolReader(tmp_path)
    refs = reader.poll()
    with open(tmp_path / "shard-w0-00000.tar", "r+b") as shard:
        shard.seek(refs[1].offset + 700)
        shard.write(b"\xff\x00\xff")
    assert reader.read(refs[0]).sample_id == "7-00000000"
    with pytest.raises(
        PoolError, match=rf"checksum \w{{8}} at {refs[1].offset}, the index says {refs[1].crc32:08x}"
    ):
        reader.read(refs[1])
    assert reader.read(refs[2]).sample_id == "7-00000002"
    with open(tmp_path / "shard-w0-00000.tar", "r+b") as shard:  # now the last one: the writer must notice
        shard.seek(refs[2].offset + 700)
        shard.write(b"\xff\x00\xff")
    fill(tmp_path, 1, start=3)
    assert "a damaged shard is set aside" in caplog.text
    assert (tmp_path / "shard-w0-00001.tar").exists()


def test_foreign_files_are_set_aside_with_their_content_in_the_message(tmp_path, caplog):
    fill(tmp_path, 1)
    (tmp_path / "shard-w1-00000.idx.jsonl").write_text('{"name": "someone else"}\n')
    (tmp_path / "shard-w2-00000.idx.jsonl").write_bytes(b"\x80\x04\x95 a pickle\n")
    header = '{"kind":"header","format":"mflight-pool","version":9,"writer":"w3","number":0}\n'
    (tmp_path / "shard-w3-00000.idx.jsonl").write_text(header)
    (tmp_path / "shard-w4-00000.idx.jsonl").write_text(header.replace("9", "1"))
    (tmp_path / "notes.txt").write_text("not ours")
    reader = PoolReader(tmp_path)
    assert [ref.sample_id for ref in reader.poll()] == ["7-00000000"]
    assert len(reader.set_aside) == 4
    for part in ("someone else", "a pickle", "format version 9", "names writer 'w3'"):
        assert part in caplog.text
    assert reader.poll() == []


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"format": "mflight-pool", "version": 2}', '{"format": "x", "version": 1}']
)
def test_folder_of_another_format_is_refused(tmp_path, text):
    (tmp_path / "pool.json").write_text(text)
    for opened in (PoolReader, lambda folder: PoolWriter(folder, "w0")):
        with pytest.raises(PoolError, match=r"pool\.json"):
            opened(tmp_path)


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


def test_a_refusing_disk_leaves_the_series_as_it_was(tmp_path, monkeypatch):
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(make_sample(0), index=0)
        real_fsync, calls = os.fsync, []

        def refuse(descriptor):
            calls.append(descriptor)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            real_fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            writer.append(make_sample(1), index=1)
        monkeypatch.undo()
        writer.append(make_sample(2), index=2)
    assert read_ids(tmp_path) == ["7-00000000", "7-00000002"]
