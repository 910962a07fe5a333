import os
import pickle
import shutil

import pytest

from mflight.synthesis.pool.index import PoolError, PoolIndex, tell_uses
from mflight.synthesis.pool.packing import EncodedSample
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.recovery import find_unacknowledged
from mflight.synthesis.pool.reuse import ReuseQueue
from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.pool.throttle import Throttle, bounded_shard
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.stream import PoolStream
from tests.unit.synthesis.squares import categories, generator_settings, make_sample
from tests.unit.synthesis.test_worker import run

pytestmark = pytest.mark.usefixtures("_quick_disk")


@pytest.fixture
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no machine crashes here


def name(index):
    return f"7-{index:08d}"


def append(writer, *indices):
    for index in indices:
        writer.append(make_sample(index), index=index)


def fill(folder, count, start=0, writer_name="w0", shard_samples=2):
    with PoolWriter(folder, writer_name, shard_samples=shard_samples) as writer:
        append(writer, *range(start, start + count))


def evicting(folder, max_samples, **settings):
    return Throttle(PoolIndex(folder), max_samples=max_samples, when_full="evict", **settings)


def indices_in(folder):
    reader = PoolReader(folder)
    return [reader.read(ref).provenance["index"] for ref in reader.poll()]


def shards_in(folder):
    return sorted(path.stem for path in folder.glob("*.tar"))


def test_the_oldest_shards_of_all_writers_make_room_and_the_rest_stays(tmp_path):
    for index in range(0, 12, 2):  # two series, in turns
        fill(tmp_path, 2, index, f"w{index // 2 % 2}")
    reader = PoolReader(tmp_path)
    assert len(reader.poll()) == 12
    throttle = evicting(tmp_path, 9)
    assert throttle.pause() is None
    assert indices_in(tmp_path) == list(range(4, 12))
    assert shards_in(tmp_path) == [f"shard-w{writer}-0000{number}" for writer in (0, 1) for number in (1, 2)]
    assert all(PoolIndex(tmp_path).is_answered(name(index)) for index in range(12))
    assert reader.poll() == []
    assert sorted(reader.newly_evicted) == [name(index) for index in range(4)]
    assert reader.poll() == [] == list(reader.newly_evicted)
    assert reader.ids("evicted") == {name(index) for index in range(4)}


def test_a_bound_in_bytes_is_held_too(tmp_path):
    fill(tmp_path, 20)
    sizes = [ref.size for ref in PoolReader(tmp_path).poll()]
    throttle = Throttle(PoolIndex(tmp_path), max_bytes=sum(sizes) // 2, when_full="evict")
    assert throttle.pause() is None
    kept = indices_in(tmp_path)
    assert kept == list(range(20 - len(kept), 20)) and 6 <= len(kept) <= 9
    assert sum(sizes[-len(kept) :]) < sum(sizes) // 2
    assert throttle.pause() is None and indices_in(tmp_path) == kept


def test_below_its_bounds_and_when_it_shall_stop_nothing_is_dropped(tmp_path):
    fill(tmp_path, 8)
    assert evicting(tmp_path, 9).pause() is None
    assert Throttle(PoolIndex(tmp_path), max_samples=8, when_full="stop").pause() == "full"
    assert indices_in(tmp_path) == list(range(8)) and len(shards_in(tmp_path)) == 4


def test_a_worker_draws_on_within_the_bound_and_nothing_twice(tmp_path):
    run(tmp_path, max_requests=80, max_samples=12, when_full="evict", batch_size=2)
    status = WorkerStatus.read(tmp_path, "w0")
    assert (status.state, status.requests, status.accepted) == ("done", 80, 60)
    kept = indices_in(tmp_path)
    assert kept == [index for index in range(80) if index % 4 != 3][-len(kept) :] and 8 <= len(kept) <= 13
    numbers = [int(stem[-5:]) for stem in shards_in(tmp_path)]
    run(tmp_path, max_requests=80, max_samples=12, when_full="evict")
    assert WorkerStatus.read(tmp_path, "w0").requests == 80  # as ever, after a restart
    for index in (1, 0):  # a second worker takes none of those that the first one has answered
        run(tmp_path, max_requests=84, max_samples=12, when_full="evict", index=index, devices=["cpu", "cpu"])
    answered = [WorkerStatus.read(tmp_path, name).requests for name in ("w0", "w1")]
    assert answered == [82, 2] and indices_in(tmp_path)[-3:] == [80, 81, 82]
    assert numbers[-1] > 15  # no number comes again: readers know a shard by it


def test_a_stream_forgets_the_uses_of_what_was_evicted_also_those_of_a_checkpoint(tmp_path):
    def stream():
        return PoolStream(pool_dir=tmp_path, categories=categories(), poll_interval_s=0.0, max_reuse=2)

    fill(tmp_path, 6)
    source = stream()
    pending = [source.next_ref() for _ in range(6)]
    state = source.state_dict()
    evicting(tmp_path, 4).pause()
    assert sorted(source.next_ref().index for _ in range(2)) == [4, 5]
    assert source.next_ref() is None and (source.num_samples, source.num_used) == (2, 2)
    assert source.state_dict(pending) == {"uses": {name(4): 1, name(5): 1}}
    source.release(pending)
    assert sorted(source.next_ref().index for _ in range(2)) == [4, 5]
    resumed = stream()
    resumed.load_state_dict(state)
    assert sorted(resumed.next_ref().index for _ in range(2)) == [4, 5]
    assert resumed.state_dict() == {"uses": {name(4): 2, name(5): 2}}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"low_water": 8}, "low_water must be below high_water 8, got 8"),
        ({"max_samples": 15, "when_full": "evict"}, "at least twice high_water 8 .* got 15"),
        ({"when_full": "drop"}, "when_full"),
    ],
)
def test_contradicting_bounds_are_refused(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        generator_settings(tmp_path, high_water=8, **settings)


def test_newest_shards_of_all_writers_hold_a_quarter_at_most():
    assert bounded_shard(64, None, 2 * 10**9) == {"shard_bytes": 7_812_500}
    assert bounded_shard(2, 10**6, 20 * 10**9) == {"shard_samples": 1000, "shard_bytes": 256 * 2**20}
    assert bounded_shard(3, 10, None) == {"shard_samples": 1} and bounded_shard(3, None, None) == {}


def test_an_encoded_sample_is_stored_as_it_is_and_anything_else_refused(tmp_path):
    picture = b"\x89PNG" + bytes(7)
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(EncodedSample("a-1", picture, [], [], {}))
        with pytest.raises(PoolError, match=r"a-2: picture must be a JPEG or PNG, begins b'GIF89a'"):
            writer.append(EncodedSample("a-2", b"GIF89a", [], [], {}))
    assert picture in (tmp_path / "shard-w0-00000.tar").read_bytes()


def test_the_shard_of_a_living_writer_may_go_and_it_begins_another(tmp_path):
    with PoolWriter(tmp_path, "w0") as living:
        append(living, 0, 1, 2)
        throttle = evicting(tmp_path, 3)
        assert throttle.pause() is None and shards_in(tmp_path) == []
        append(living, 3, 4)
        assert shards_in(tmp_path) == ["shard-w0-00001"] and indices_in(tmp_path) == [3, 4]
        assert living.counts.samples == 5
    with PoolWriter(tmp_path, "w0") as writer:
        append(writer, 5)
    assert shards_in(tmp_path) == ["shard-w0-00001", "shard-w0-00002"]  # no number comes again


def test_shards_whose_samples_were_all_used_go_before_older_ones(tmp_path):
    fill(tmp_path, 6)
    tell_uses(tmp_path, {name(0): 3, name(2): 1, name(3): 2})
    assert evicting(tmp_path, 6).pause() is None
    assert indices_in(tmp_path) == [0, 1, 4, 5]
    assert evicting(tmp_path, 4).pause() is None
    assert indices_in(tmp_path) == [4, 5]


def test_files_left_by_a_kill_in_mid_eviction_are_read_by_nobody_and_removed_by_the_next_writer(
    tmp_path,
):
    fill(tmp_path, 6)
    shutil.copytree(tmp_path, tmp_path / "before")
    evicting(tmp_path, 4).pause()
    for shard in ("shard-w0-00000.tar", "shard-w0-00001.tar"):
        shutil.copy(tmp_path / "before" / shard, tmp_path)
    reader = PoolReader(tmp_path)
    assert [ref.index for ref in reader.poll()] == [4, 5] and reader.set_aside == {}
    assert find_unacknowledged(tmp_path) == {}
    fill(tmp_path, 1, 6, "w1")
    assert shards_in(tmp_path) == ["shard-w0-00002", "shard-w1-00000"]


def test_a_shard_that_goes_while_it_is_looked_for_is_no_damage(tmp_path, monkeypatch):
    fill(tmp_path, 4)
    reader, find_new = PoolReader(tmp_path), PoolReader._find_new

    def find_and_evict(self, index):
        found = find_new(self, index)
        evicting(tmp_path, 4).pause()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(PoolReader, "_find_new", find_and_evict)
        assert [ref.index for ref in reader.poll()] == [2, 3]
    assert reader.set_aside == {} and [ref.index for ref in reader.poll()] == []


def test_a_disk_that_refuses_pauses_the_drawing_and_is_told_once(tmp_path, caplog, monkeypatch):
    fill(tmp_path, 6)
    throttle = evicting(tmp_path, 4)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PoolIndex, "change", refuse)
        assert throttle.pause() == throttle.pause() == "full"
    assert caplog.text.count("No space left on device") == 1
    assert indices_in(tmp_path) == list(range(6))
    assert throttle.pause() is None and indices_in(tmp_path) == [4, 5]


def test_evicted_samples_count_neither_as_drawn_nor_as_used_for_the_marks(tmp_path):
    fill(tmp_path, 8)
    tell_uses(tmp_path, {name(index): 1 for index in range(5)})
    throttle = evicting(tmp_path, 8, high_water=4, low_water=2)
    assert throttle.pause() is None  # 3 unused: it makes room
    assert indices_in(tmp_path) == list(range(2, 8))
    fill(tmp_path, 1, 8)
    assert throttle.pause() == "paused"  # 4 unused


def test_a_stream_takes_another_sample_for_one_that_was_evicted(tmp_path):
    fill(tmp_path, 6)
    source = PoolStream(pool_dir=tmp_path, categories=categories(), poll_interval_s=3600.0, max_reuse=1)
    held = [source.next_ref() for _ in range(2)]
    evicting(tmp_path, 4).pause()
    with pytest.raises(PoolError, match=r"shard-w0-00000.tar: missing"):
        source.read(held[0])
    assert [target["sample_id"] for _, target in source] == [name(4), name(5)]


def test_what_each_holds_does_not_grow_with_what_was_evicted(tmp_path):
    reader, queue = PoolReader(tmp_path), ReuseQueue(max_reuse=9, seed=0)
    with PoolWriter(tmp_path, "w0", shard_samples=10) as writer:
        throttle = evicting(tmp_path, 40)
        for index in range(2000):
            writer.append(EncodedSample(name(index), b"\xff\xd8", [], [], {}), index=index)
            if index % 10 == 9:
                assert throttle.pause() is None
                for ref in reader.poll():
                    queue.add(ref)
                queue.forget(reader.newly_evicted)
                assert len(queue) <= 50 and queue.take() is not None
    assert len(reader.ids("evicted")) > 1900
    for held in (reader, queue):
        assert len(pickle.dumps(held)) < 12_000  # bytes; a name alone takes more than ten


def test_a_sample_drawn_again_outlives_the_eviction_of_its_first_shard(tmp_path):
    fill(tmp_path, 2)
    reader = PoolReader(tmp_path)
    assert len(reader.poll()) == 2
    shard = tmp_path / "shard-w0-00000.tar"
    os.truncate(shard, shard.stat().st_size - 600)  # the second sample is torn
    fill(tmp_path, 2, 1)
    assert [ref.index for ref in reader.poll()] == [1, 2]
    assert evicting(tmp_path, 3).pause() is None
    assert reader.poll() == [] and list(reader.newly_evicted) == [name(0)]
    assert indices_in(tmp_path) == [1, 2]


def test_a_training_that_tells_its_uses_does_not_wait_for_a_writer(tmp_path):
    fill(tmp_path, 1)
    source = PoolStream(pool_dir=tmp_path, categories=categories(), poll_interval_s=0.0)
    index = PoolIndex(tmp_path)
    with index.transaction():
        assert [source.next_ref().index for _ in range(2)] == [0, 0]
    assert index.value("SELECT uses FROM requests") == 0
    source.next_ref()
    assert index.value("SELECT uses FROM requests") == 2
    index.close()
