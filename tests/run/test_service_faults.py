"""Real generator processes, killed, starved and left alone; only the diffusion model is a quick stand-in."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mflight.synthesis.pool.index import tell_uses
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.shards import whole_samples
from tests.unit.synthesis.test_service import poll_until, service

ROOT = Path(__file__).parents[2]


def sample_indices(folder):
    reader = PoolReader(folder)
    return [reader.read(ref).provenance["index"] for ref in reader.poll()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def expected_indices(count):
    return [index for index in range(count) if index % 4 != 3]  # the stand-in drops each fourth canvas


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "wait_s", "what"),
    [
        (signal.SIGKILL, 0.0, "was killed by SIGKILL"),
        (signal.SIGKILL, 0.35, "was killed by SIGKILL"),
        (signal.SIGTERM, 0.0, "was told to stop by somebody else"),
    ],
)
def test_killed_worker_comes_back_and_nothing_is_lost_or_drawn_twice(tmp_path, number, wait_s, what):
    running = service(tmp_path, {"seconds": 0.02}, max_requests=60, batch_size=3)
    with running:
        report, _ = poll_until(running, lambda report: report.total("accepted") >= 3)
        time.sleep(wait_s)
        os.kill(report.statuses[0].pid, number)
        report, messages = poll_until(running, lambda report: report.is_over)
    assert report.num_deaths == 1
    assert messages == [f"generator w0 {what}; restart 1 of 5 in 0 s"]
    assert sample_indices(tmp_path) == expected_indices(60)
    assert report.total("requests") == 60
    stored = sum(len(list(whole_samples(path, 0))) for path in tmp_path.glob("*.tar"))
    assert stored == 45


@pytest.mark.slow
def test_worker_that_dies_inside_a_batch_resumes_at_that_request(tmp_path):
    synthesizer = {"crash_at": 5, "crash_file": str(tmp_path / "crashed")}
    running = service(tmp_path / "pool", synthesizer, max_requests=10, batch_size=4)
    with running:
        report, messages = poll_until(running, lambda report: report.is_over)
    assert len(messages) == report.num_deaths == 1
    assert sample_indices(tmp_path / "pool") == expected_indices(10)


@pytest.mark.slow
def test_paused_worker_wakes_as_the_trainer_uses_samples_and_stops_in_seconds(tmp_path):
    running = service(tmp_path, high_water=6, low_water=2)
    with running:
        report, _ = poll_until(running, lambda report: report.statuses[0].state == "paused")
        assert report.total("accepted") == 6
        tell_uses(tmp_path, {f"7-{index:08d}": 1 for index in expected_indices(6)[:4]})
        report, _ = poll_until(running, lambda report: report.total("accepted") == 10)
        pid = report.statuses[0].pid
        poll_until(running, lambda report: report.statuses[0].state == "paused")
        started = time.monotonic()
        running.stop()
        assert time.monotonic() - started < 5
    assert not is_running(pid)
    report = running.poll()
    assert (report.alive, report.num_deaths, report.messages) == (0, 0, ())
    assert report.statuses[0].state == "stopped"
    assert report.total("idle_s") > 0


@pytest.mark.slow
def test_full_disk_ends_generation_with_a_message_and_no_restart(tmp_path):
    running = service(tmp_path, {"error_at": 2, "error_number": errno.ENOSPC})
    with running:
        report, messages = poll_until(running, lambda report: report.is_over)
    assert (report.num_deaths, report.given_up) == (0, 1)
    assert len(messages) == 1 and "the disk is full" in messages[0] and "training goes on" in messages[0]
    assert sample_indices(tmp_path) == [0, 1]


@pytest.fixture
def tiny_disk(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(tmp_path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.slow
def test_disk_that_fills_keeps_every_acknowledged_sample_readable(tiny_disk):
    running = service(tiny_disk, image_format="png")
    with running:
        report, messages = poll_until(running, lambda report: report.is_over)
    assert (report.num_deaths, report.given_up) == (0, 1)
    assert len(messages) == 1 and "the disk is full" in messages[0]
    indices = sample_indices(tiny_disk)
    assert indices == expected_indices(indices[-1] + 1)
    assert len(indices) > 10


@pytest.mark.slow
def test_workers_die_with_a_trainer_that_is_killed(tmp_path):
    code = (
        "import sys, time\n"
        "from tests.unit.synthesis.test_service import service\n"
        "if __name__ == '__main__':\n"
        "    running = service(sys.argv[1], {'seconds': 0.05})\n"
        "    running.start()\n"
        "    while True:\n"
        "        report = running.poll()\n"
        "        print(report.statuses[0].pid if report.total('accepted') else 0, flush=True)\n"
        "        time.sleep(0.1)\n"
    )
    script = tmp_path / "trainer.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "pool")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = next(int(line) for line in trainer.stdout if int(line))
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)
    count = len(sample_indices(tmp_path / "pool"))
    running = service(tmp_path / "pool", max_requests=20 + 4 * count)
    with running:
        poll_until(running, lambda report: report.is_over)
    assert sample_indices(tmp_path / "pool") == expected_indices(20 + 4 * count)
