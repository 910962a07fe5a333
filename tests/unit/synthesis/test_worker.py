import errno
import signal

import pytest

from mflight.synthesis.pool.index import PoolIndex, tell_uses
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.shards import whole_samples
from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.pool.throttle import Throttle
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.worker import EXIT_DISK_FULL, WorkerSpec, fill_device, run_worker
from tests.unit.synthesis.squares import generator_settings, make_sample


@pytest.fixture(autouse=True)
def _keep_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(folder, synthesizer=(), index=0, **settings):
    settings = {"max_requests": 10, "capture_output": False, **settings}
    run_worker(WorkerSpec(generator_settings(folder, synthesizer, **settings), index))


def whole_samples_of(shard):
    return list(whole_samples(shard, 0))


def ids(folder):
    reader = PoolReader(folder)
    return [ref.index for ref in reader.poll()], {int(name[2:]) for name in reader.ids("dropped")}


def test_every_request_is_answered_once_and_counted(tmp_path):
    run(tmp_path, batch_size=3)
    accepted, dropped = ids(tmp_path)
    assert accepted == [0, 1, 2, 4, 5, 6, 8, 9]
    assert dropped == {3, 7}
    status = WorkerStatus.read(tmp_path, "w0")
    assert (status.state, status.requests, status.accepted, status.dropped) == ("done", 10, 8, 2)
    assert (status.regions, status.rejected) == (40, {"area": 8 + 8})
    assert status.size_bytes == (tmp_path / "shard-w0-00000.tar").stat().st_size > 0
    assert status.busy_s > 0 and set(status.stage_s) == {"denoise"}


def test_samples_carry_what_is_needed_to_draw_them_again(tmp_path):
    run(tmp_path, max_requests=1)
    reader = PoolReader(tmp_path)
    sample = reader.read(reader.poll()[0])
    assert sample.provenance["request_id"] == sample.sample_id == "7-00000000"
    assert len(sample.annotations) == 3 and sample.regions[0]["rejected"] == "area"


def test_restart_makes_no_duplicate_and_no_gap(tmp_path):
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path, {"error_at": 5}, batch_size=2)
    status = WorkerStatus.read(tmp_path, "w0")
    assert (status.state, status.message) == ("failed", "ValueError: request 5 is cursed")
    assert ids(tmp_path) == ([0, 1, 2], {3})
    run(tmp_path, batch_size=3)
    run(tmp_path)
    assert ids(tmp_path) == ([0, 1, 2, 4, 5, 6, 8, 9], {3, 7})
    status = WorkerStatus.read(tmp_path, "w0")
    assert (status.state, status.requests, status.message) == ("done", 10, "")
    assert sum(len(whole_samples_of(path)) for path in tmp_path.glob("*.tar")) == 8


def test_workers_split_the_requests_also_when_their_number_changes(tmp_path):
    for index in range(2):
        run(tmp_path, index=index, devices=["cpu"] * 2, max_requests=6)
    assert ids(tmp_path) == ([0, 1, 2, 4, 5], {3})
    for index in range(3):
        run(tmp_path, index=index, devices=["cpu"] * 3)
    assert ids(tmp_path) == ([0, 1, 2, 4, 5, 6, 8, 9], {3, 7})
    assert sum(len(whole_samples_of(path)) for path in tmp_path.glob("*.tar")) == 8


def test_batch_halves_until_it_fits_the_device(tmp_path):
    run(tmp_path, {"max_batch": 2}, batch_size=8)
    assert ids(tmp_path)[0] == [0, 1, 2, 4, 5, 6, 8, 9]
    assert WorkerStatus.read(tmp_path, "w0").batch_size == 2
    with pytest.raises(SystemExit):
        run(tmp_path / "none", {"max_batch": 0})
    assert "1 requests do not fit" in WorkerStatus.read(tmp_path / "none", "w0").message


def test_full_disk_has_its_own_end(tmp_path):
    with pytest.raises(SystemExit, match=str(EXIT_DISK_FULL)):
        run(tmp_path, {"error_at": 2, "error_number": errno.ENOSPC})
    status = WorkerStatus.read(tmp_path, "w0")
    assert (status.state, status.accepted) == ("disk_full", 2)
    assert "No space left on device" in status.message


def test_second_worker_of_a_name_ends_and_leaves_the_first_ones_status(tmp_path):
    with PoolWriter(tmp_path, "w0"):
        WorkerStatus("w0", pid=1, state="drawing").write(tmp_path)
        with pytest.raises(SystemExit, match="1"):
            run(tmp_path)
    assert WorkerStatus.read(tmp_path, "w0").pid == 1


def test_throttle_pauses_at_high_water_and_wakes_at_low_water(tmp_path):
    with PoolWriter(tmp_path, "w1") as writer:
        throttle = Throttle(PoolIndex(tmp_path), high_water=4, low_water=1)
        for index in range(4):
            assert throttle.pause() is None
            writer.append(make_sample(index), index=index)
        assert throttle.pause() == "paused"
        tell_uses(tmp_path, {"7-00000000": 1, "7-00000001": 1})
        assert throttle.pause() == "paused"  # a backlog of 2 is above the low-water mark
        tell_uses(tmp_path, {"7-00000002": 1})
        assert throttle.pause() is None
        for index in range(4, 6):
            writer.append(make_sample(index), index=index)
        assert throttle.pause() is None  # 3 unused
        tell_uses(tmp_path, {"7-00000002": 1}, forget_others=True)  # the trainer began again
        assert throttle.pause() == "paused"


def test_throttle_keeps_the_pool_within_its_bounds(tmp_path):
    with PoolWriter(tmp_path, "w1") as writer:
        for index in range(3):
            writer.append(make_sample(index), index=index)
    assert Throttle(PoolIndex(tmp_path), max_samples=4).pause() is None
    assert Throttle(PoolIndex(tmp_path), max_samples=3).pause() == "full"
    size_bytes = (tmp_path / "shard-w1-00000.tar").stat().st_size
    assert Throttle(PoolIndex(tmp_path), max_bytes=size_bytes + 1).pause() is None
    assert Throttle(PoolIndex(tmp_path), max_bytes=size_bytes).pause() == "full"


def test_device_auto_becomes_the_workers_own_at_any_depth():
    config = {
        "device": "auto",
        "pipeline": {"device": "auto", "parts": [{"device": "auto"}, {"device": "cpu"}]},
    }
    assert fill_device(config, "cuda:3") == {
        "device": "cuda:3",
        "pipeline": {"device": "cuda:3", "parts": [{"device": "cuda:3"}, {"device": "cpu"}]},
    }
