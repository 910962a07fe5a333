"""Real writer processes that evict, killed at random moments; nothing is lost, doubled or drawn again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mflight.synthesis.pool.index import PoolError, PoolIndex
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.writer import PoolWriter

ROOT = Path(__file__).parents[2]
WRITER = """
import io, sys
from pathlib import Path
from PIL import Image
from mflight.synthesis.pool.agenda import Agenda
from mflight.synthesis.pool.packing import EncodedSample
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.pool.throttle import Throttle

folder, place, file = Path(sys.argv[1]), int(sys.argv[2]), io.BytesIO()
Image.new("RGB", (32, 32)).save(file, "JPEG")
picture = file.getvalue()
with PoolWriter(folder, f"w{place}", shard_samples=2) as writer:
    throttle = Throttle(writer.index, max_samples=20, when_full="evict")
    agenda = Agenda(writer.index, "7-{:08d}".format, worker_index=place, num_workers=2)
    while True:
        throttle.pause()
        for index in agenda.take(1):
            writer.append(EncodedSample(f"7-{index:08d}", picture, [], [], {}), index=index)
            print(index, flush=True)
"""


def start(folder, place):
    command = [sys.executable, "-c", WRITER, str(folder), str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process):
    """Kill it and return the requests that it had acknowledged."""
    process.send_signal(signal.SIGKILL)
    return [int(line) for line in process.communicate()[0].splitlines() if line]


def num_evictions(folder):
    return len(PoolReader(folder).rows("SELECT DISTINCT shard FROM requests WHERE state = 'evicted'"))


@pytest.mark.slow
def test_writers_killed_while_they_evict_lose_nothing_and_draw_nothing_twice(tmp_path):
    draws, told, num_read = random.Random(5), [], 0
    reader = PoolReader(tmp_path)
    for _ in range(3):
        processes = [start(tmp_path, place) for place in range(2)]
        before = num_evictions(tmp_path)
        while num_evictions(tmp_path) < before + 10:
            assert [process.poll() for process in processes] == [None, None]
            for ref in reader.poll():
                try:
                    num_read += reader.read(ref).sample_id == ref.sample_id
                except PoolError as error:
                    assert "missing" in str(error)  # it has gone in this moment
        time.sleep(draws.uniform(0.0, 0.1))
        for process in processes:
            told += end(process)
    assert num_read > 20 and reader.set_aside == {}
    for place in range(2):
        PoolWriter(tmp_path, f"w{place}").close()
    evicted, kept = reader.ids("evicted"), {ref.sample_id for ref in PoolReader(tmp_path).poll()}
    assert {f"7-{index:08d}" for index in told} <= evicted | kept
    assert 12 <= len(kept) <= 24 and len(evicted) > 50
    assert len(list(tmp_path.glob("*.tar"))) <= 14
    assert all(PoolIndex(tmp_path).is_answered(name) for name in evicted | kept)


@pytest.mark.slow
def test_a_second_process_of_a_name_is_refused_by_name_and_owner(tmp_path):
    with PoolWriter(tmp_path, "w0") as writer:
        refused = start(tmp_path, 0)
        output, errors = refused.communicate()
        assert (refused.returncode, output, writer.counts.samples) == (1, "", 0)
    assert f"pool writer 'w0' is in use by pid {os.getpid()} on" in errors
    assert "every writer needs a name of its own" in errors
