import os
import subprocess
import sys

import pytest

from mflight.training.machine_share import share_of

CLAIM = """
import os, sys
from pathlib import Path
os.environ["CUDA_VISIBLE_DEVICES"] = "3,5,6,7"
from mflight.training.machine_share import take_share
try:
    take_share(Path(sys.argv[1]), 2), take_share(Path(sys.argv[1]), 2)
    print(os.environ["CUDA_VISIBLE_DEVICES"], *os.sched_getaffinity(0), flush=True)
except RuntimeError as error:
    print(error, flush=True)
sys.stdin.read()
"""


def test_shares_are_neighbours_and_together_the_whole():
    assert [share_of(range(8), share, 3) for share in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert share_of(["0"], 0, 1) == ["0"]


def test_few_things_serve_several():
    assert [share_of(["0", "1"], share, 3) for share in range(3)] == [["0"], ["1"], ["0"]]


@pytest.fixture
def claim(tmp_path):
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path)], stdin=-1, stdout=-1, text=True, cwd=os.getcwd()
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_each_process_keeps_one_share_until_it_ends_and_no_third_gets_one(claim):
    first, second = claim(), claim()
    seen = [process.stdout.readline().split() for process in (first, second)]
    assert sorted(words[0] for words in seen) == ["3,5", "6,7"]
    cores = os.sched_getaffinity(0)
    if len(cores) >= 2:
        assert not set(seen[0][1:]) & set(seen[1][1:])
    third = claim()
    assert "2 shares of this machine, and all are taken" in third.stdout.readline()
    first.kill()
    first.wait()
    assert claim().stdout.readline().split()[0] == seen[0][0]
