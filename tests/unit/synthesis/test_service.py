import time

import pytest

from mflight.synthesis.generator_settings import GeneratorSettings
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.service import SynthesisService
from tests.unit.synthesis.squares import PLANNER, SYNTHESIZER, generator_settings

PATIENCE_S = 120


def service(folder, synthesizer=(), **settings):
    return SynthesisService(generator_settings(folder, synthesizer, **settings))


def poll_until(running, condition):
    """Poll until the condition holds; return the last report and all messages."""
    messages, deadline = [], time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        report = running.poll()
        messages.extend(report.messages)
        if condition(report):
            return report, messages
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE_S} s, last report {report}")


def test_two_workers_answer_all_requests_and_end(tmp_path):
    running = service(tmp_path, devices=["cpu", "cpu"], max_requests=9)
    with running:
        report, messages = poll_until(running, lambda report: report.is_over)
    assert messages == []
    assert (report.alive, report.restarting, report.given_up, report.num_deaths) == (0, 0, 0, 0)
    assert [status.state for status in report.statuses] == ["done", "done"]
    assert (report.total("requests"), report.total("accepted"), report.total("dropped")) == (9, 7, 2)
    assert report.total_by_name("rejected") == {"area": 7 + 8}
    assert [ref.index for ref in PoolReader(tmp_path).poll()] == [0, 1, 2, 4, 5, 6, 8]


def test_failing_worker_is_started_again_then_given_up_and_each_is_told_once(tmp_path, caplog):
    running = service(tmp_path, {"error_at": 2}, max_restarts=1)
    with running:
        report, messages = poll_until(running, lambda report: report.is_over)
    assert (report.num_deaths, report.given_up) == (2, 1)
    assert [message.split(";")[1].strip() for message in messages] == [
        "restart 1 of 1 in 0 s",
        "it is given up after 2 deaths, training goes on while the pool has samples to use",
    ]
    assert all("ValueError: request 2 is cursed" in message for message in messages)
    assert all(message in caplog.text for message in messages)
    assert running.poll().messages == ()
    assert [ref.index for ref in PoolReader(tmp_path).poll()] == [0, 1]
    assert "request 2 is cursed" in (tmp_path / "worker-w0.log").read_text()


@pytest.mark.parametrize(
    ("synthesizer", "message"),
    [
        ({"speed": 3}, "unexpected keyword argument 'speed'"),
        ({"_target_": "no.such.Synthesizer"}, "no.such.Synthesizer"),
        (
            {"_target_": "mflight.diffusion.pipeline.load_pipeline", "checkpoint": "nowhere/at/all"},
            "checkpoint must be a folder or a hub id (owner/name), no folder 'nowhere/at/all'",
        ),
    ],
)
def test_what_cannot_be_built_as_configured_is_not_started_again(tmp_path, synthesizer, message):
    own = {} if "_target_" in synthesizer else SYNTHESIZER
    settings = GeneratorSettings(
        pool_dir=tmp_path, planner=PLANNER, synthesizer={**own, **synthesizer}, backoff_s=0.0, max_restarts=5
    )
    running = SynthesisService(settings)
    with running:
        report, (told,) = poll_until(running, lambda report: report.is_over)
    assert (report.num_deaths, report.given_up) == (0, 1)
    assert told.startswith("generator w0 cannot draw as it is set: ") and message in told
    assert "Traceback" in (tmp_path / "worker-w0.log").read_text()


def test_a_service_that_cannot_start_a_process_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("os.pipe", lambda: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    running = service(tmp_path, max_restarts=0)
    running.start()
    report = running.poll()
    monkeypatch.undo()
    assert "could not be started (OSError: [Errno 24] Too many open files)" in report.messages[0]
    assert report.given_up == 1
    running.stop()
