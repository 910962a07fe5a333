import errno
import logging
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from mflight.data.array_cache import cached_arrays


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.json"
    path.write_text("one")
    return path


class Builder:
    def __init__(self):
        self.num_builds = 0

    def __call__(self):
        self.num_builds += 1
        return {"numbers": np.arange(6).reshape(2, 3), "nothing": np.zeros((0, 4))}


def open_cache(source, build, version=1):
    return cached_arrays(source, source.parent / "cache", version, build)


def test_the_second_opening_maps_what_the_first_has_built(source):
    build = Builder()
    open_cache(source, build)
    arrays = open_cache(source, build)
    assert build.num_builds == 1
    assert isinstance(arrays["numbers"], np.memmap) and not arrays["numbers"].flags.writeable
    assert arrays["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]] and arrays["nothing"].shape == (0, 4)


@pytest.mark.parametrize("change", ["size", "time", "version"])
def test_a_changed_source_or_format_is_built_again_and_replaces_the_old_entry(source, change):
    build = Builder()
    open_cache(source, build)
    if change == "size":
        source.write_text("longer")
    if change == "time":
        os.utime(source, (1, 1))
    open_cache(source, build, version=2 if change == "version" else 1)
    assert build.num_builds == 2
    assert sum(path.is_dir() for path in (source.parent / "cache").iterdir()) == 1


@pytest.mark.parametrize("damage", ["cut", "gone", "other shape", "no index"])
def test_a_damaged_entry_is_reported_and_built_again(source, damage, caplog):
    build = Builder()
    open_cache(source, build)
    entry = next(path for path in (source.parent / "cache").iterdir() if path.is_dir())
    file = entry / "numbers.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    if damage == "gone":
        file.unlink()
    if damage == "other shape":
        np.save(file, np.arange(3))
    if damage == "no index":
        (entry / "index.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        arrays = open_cache(source, build)
    assert build.num_builds == 2 and arrays["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert f"{entry} is damaged and will be built again" in caplog.text


@pytest.fixture
def users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "mflight"


def refuse_writing(folder, monkeypatch):
    """Let a folder refuse new entries, whoever runs the tests."""
    write, make = tempfile.TemporaryFile, Path.mkdir

    def refuse(place):
        if Path(place).is_relative_to(folder):
            raise OSError(errno.EROFS, "Read-only file system", str(place))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: refuse(dir) or write(dir=dir))
    monkeypatch.setattr(Path, "mkdir", lambda self, *mode, **how: refuse(self) or make(self, *mode, **how))


def test_the_cache_of_a_read_only_folder_is_the_users(source, users_cache, monkeypatch, caplog):
    refuse_writing(source.parent / "cache", monkeypatch)
    build = Builder()
    for _ in range(2):
        assert open_cache(source, build)["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert build.num_builds == 1 and not (source.parent / "cache").exists()
    assert len([path for path in users_cache.iterdir() if path.is_dir()]) == 1
    assert (
        f"{source.parent / 'cache'} cannot be written: what is read from {source} is cached in" in caplog.text
    )


def test_without_any_cache_the_arrays_are_made_each_time(source, users_cache, monkeypatch, caplog):
    refuse_writing(source.parent, monkeypatch)
    build = Builder()
    for _ in range(2):
        assert open_cache(source, build)["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert build.num_builds == 2 and f"nor {users_cache} can be written" in caplog.text


def test_a_file_system_without_locks_is_none_to_fail_on(source, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    build = Builder()
    assert open_cache(source, build)["numbers"].shape == open_cache(source, build)["numbers"].shape == (2, 3)
    assert build.num_builds == 1


def test_a_failed_build_leaves_nothing_behind(source):
    def fail():
        raise ValueError("no numbers today")

    with pytest.raises(ValueError, match="no numbers today"):
        open_cache(source, fail)
    assert open_cache(source, Builder())["numbers"].shape == (2, 3)


def test_maps_can_be_passed_to_workers(source):
    arrays = open_cache(source, Builder())
    assert pickle.loads(pickle.dumps(arrays))["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]
