"""``python -m mflight.export`` as a user calls it."""

import subprocess
import sys
from pathlib import Path

import lvis
import pytest

from mflight import export
from mflight.minilvis.dataset import MiniLVISSize, build_minilvis
from mflight.mistakes import MistakeExit
from tests.unit.synthesis.small_pool import fill_pool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return fill_pool(tmp_path_factory.mktemp("pools") / "pool", 4)


def test_the_command_writes_a_dataset_and_says_where(pool, tmp_path):
    command = [sys.executable, "-m", "mflight.export", str(pool), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"3 synthetic images with 9 instances are in {tmp_path / 'out'}" in done.stdout
    assert len(lvis.LVIS(str(tmp_path / "out/annotations.json")).get_img_ids()) == 3
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "exists already; --overwrite replaces it" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_pool_of_another_dataset_is_not_merged(pool, tmp_path):
    size = MiniLVISSize(
        train_images={"rare": (1, 1), "common": (11, 11), "frequent": (12, 12)}, val_instances=1
    )
    dataset = build_minilvis(tmp_path / "minilvis", size=size)
    with pytest.raises(MistakeExit, match="the pool was drawn for another dataset"):
        export.main([str(pool), str(tmp_path / "out"), "--merge", str(dataset / "train.json")])
    assert [path.name for path in tmp_path.iterdir()] == ["minilvis"]
