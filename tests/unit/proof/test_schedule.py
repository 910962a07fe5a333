"""Processes side by side, with a small program in the place of train.py."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mflight.proof import runs as runs_module
from mflight.proof.runs import Run, Share
from mflight.proof.schedule import RunFailedError, divide_machine, duration, run_all

PROGRAM = Path(__file__).with_name("program.py")
CORES = sorted(os.sched_getaffinity(0))
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="one core holds one run at a time")


@pytest.fixture(autouse=True)
def _program(monkeypatch):
    monkeypatch.setattr(runs_module, "TRAIN", PROGRAM)


@pytest.fixture
def lock(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        yield file.fileno()


def make_run(folder, name, *overrides, draws=False):
    return Run(name, 0, folder / name, overrides, {}, draws)


def test_each_run_has_its_cores_and_finished_ones_are_left_alone(tmp_path, lock):
    runs = [
        make_run(tmp_path, "drawing", draws=True),
        *(make_run(tmp_path, f"real_{index}") for index in range(3)),
    ]
    runs[3].folder.mkdir()
    (runs[3].folder / "results.json").write_text('{"old": 1}')
    (runs[3].folder / "per_class.csv").touch()
    told = []
    run_all(runs, divide_machine(cores=CORES, gpus=[], jobs="auto"), told.append, lock=lock)
    assert f"with {CORES}" in (runs[0].folder / "console.txt").read_text()
    halves = {(runs[index].folder / "console.txt").read_text().split("with ")[1] for index in (1, 2)}
    if len(CORES) == 2:
        assert halves == {f"[{core}] from None\n" for core in CORES}
    assert len(runs[0].commits) == 1 and runs[3].commits == []
    assert runs[3].results == {"old": 1} and not (runs[3].folder / "console.txt").exists()
    assert told[0] == f"drawing, seed 0: started, {runs[0].folder}"
    assert "drawing, seed 0: AP 12.5 in " in told[1] and "1 of 3, about" in told[1]
    assert told[-1].endswith("3 of 3")


@needs_two_cores
def test_runs_that_do_not_draw_are_side_by_side(tmp_path, lock):
    first = make_run(tmp_path, "a", f"until={tmp_path / 'b' / 'started'}")
    second = make_run(tmp_path, "b", f"until={tmp_path / 'a' / 'started'}")
    places = divide_machine(cores=CORES, gpus=[], jobs=1)
    run_all([first, second], places, lambda line: None, lock=lock)  # each waits for the other one's start
    assert first.is_finished and second.is_finished


@needs_two_cores
def test_after_an_error_what_runs_is_finished_and_nothing_more_is_started(tmp_path, lock):
    bad = make_run(tmp_path, "bad", "fails=1")
    good = make_run(tmp_path, "good", f"until={tmp_path / 'bad' / 'started'}")
    later = make_run(tmp_path, "later")
    places = divide_machine(cores=CORES, gpus=[], jobs=1)
    with pytest.raises(
        RunFailedError, match=r"bad, seed 0 has failed with exit status 1, .*\n(.*\n)*error: the reason"
    ):
        run_all([bad, good, later], places, lambda line: None, lock=lock)
    assert good.is_finished and not later.folder.exists()


def test_no_process_outlives_a_killed_proof(tmp_path):
    script = textwrap.dedent(f"""
        from pathlib import Path
        from mflight.proof import runs
        from mflight.proof.schedule import divide_machine, run_all
        runs.TRAIN = Path({str(PROGRAM)!r})
        run = runs.Run("a", 0, Path({str(tmp_path)!r}) / "a", ("until=never",), {{}})
        with open({str(tmp_path / "lock")!r}, "w") as file:
            run_all([run], divide_machine(cores=[0], gpus=[], jobs=1), print, lock=file.fileno())
    """)
    started = tmp_path / "a" / "started"
    for number in (signal.SIGKILL, signal.SIGINT):
        proof = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait_until(lambda: started.exists() and started.read_text())
        pid = int(started.read_text())
        proof.send_signal(number)
        proof.wait()
        _wait_until(lambda pid=pid: not _is_running(pid))
        started.unlink()


def test_a_begun_run_goes_on_and_its_log_is_kept(tmp_path, lock):
    run = make_run(tmp_path, "a")
    (run.folder / "csv").mkdir(parents=True)
    (run.folder / "csv" / "metrics.csv").write_text("step\n1\n")
    assert run.prepare() == () and not run.folder.exists(), "without a checkpoint it begins anew"
    (run.folder / "csv").mkdir(parents=True)
    (run.folder / "csv" / "metrics.csv").write_text("step\n1\n")
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "last.ckpt").touch()
    (run.folder / "results.json").write_text('{"steps":')  # killed while it wrote what it had found
    told = []
    run_all([run], divide_machine(cores=[0], gpus=[], jobs=1), told.append, lock=lock)
    assert told[0].startswith("a, seed 0: goes on")
    assert f"from {run.folder}" in (run.folder / "console.txt").read_text()
    assert (run.folder / "csv_before_0.csv").read_text() == "step\n1\n"


def test_a_folder_of_other_settings_is_refused(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(
        "seed: 0\ntrainer: {max_steps: 300}\npaths: {run_dir: x}\n"
    )
    found = {"seed": "0", "trainer.max_steps": "300", "paths.run_dir": "y"}
    Run("a", 0, tmp_path, (), found).check_folder()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(ValueError, match="mine holds something else than a run"):
        Run("a", 0, tmp_path / "mine", (), found).check_folder()
    with pytest.raises(
        ValueError, match=r"a run with trainer\.max_steps=300, this proof asks for 700: name another"
    ):
        Run("a", 0, tmp_path, (), found | {"trainer.max_steps": "700"}).check_folder()


def test_the_machine_is_divided_into_equal_places():
    def divide(gpus, jobs="auto"):
        return divide_machine(cores=range(8), gpus=[str(gpu) for gpu in range(gpus)], jobs=jobs)

    (place,) = divide(gpus=0)
    assert place.parts == (Share((0, 1, 2, 3)), Share((4, 5, 6, 7)))
    assert [each.whole for each in divide(gpus=4)] == [
        Share((0, 1, 2, 3), ("0", "1")), Share((4, 5, 6, 7), ("2", "3")),
    ]  # fmt: skip
    assert len(divide(gpus=1)) == 1 and len(divide(gpus=4, jobs=4)) == 4
    assert divide(gpus=1)[0].parts == (Share(tuple(range(8)), ("0",)),)
    for jobs in (0, 9, "many"):
        with pytest.raises(ValueError, match=f"from 1 to 8, that of the cores, got {jobs!r}"):
            divide(gpus=0, jobs=jobs)


def test_lengths_of_time_are_for_people():
    assert [duration(seconds) for seconds in (44.6, 272, 7260)] == ["45 s", "4 min 32 s", "2 h 1 min"]


def _wait_until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
