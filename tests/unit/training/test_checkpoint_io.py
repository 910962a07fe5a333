import errno
import logging
import os

import pytest
import torch

from mflight.training.checkpoint_io import SafeCheckpointIO


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"step": 1}, path)
    return path


def step_of(path):
    return torch.load(path, weights_only=True)["step"]


def test_a_checkpoint_replaces_the_one_before_and_leaves_no_draft(place):
    SafeCheckpointIO().save_checkpoint({"step": 2}, place)
    assert step_of(place) == 2
    assert [path.name for path in place.parent.iterdir()] == ["last.ckpt"]


def test_the_old_checkpoint_is_whole_until_the_new_one_is(place, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(step_of(place)))  # the new one is written by now
    SafeCheckpointIO().save_checkpoint({"step": 2}, place)
    assert seen == [1] and step_of(place) == 2


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(place, monkeypatch, caplog):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with caplog.at_level(logging.WARNING):
        SafeCheckpointIO().save_checkpoint({"step": 2}, place)
    assert (
        "the disk is full" in caplog.text
        and "last.ckpt is not written, the one before is kept" in caplog.text
    )
    assert step_of(place) == 1 and len(list(place.parent.iterdir())) == 1


def test_other_errors_are_raised(place, monkeypatch):
    def refuse(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        SafeCheckpointIO().save_checkpoint({"step": 2}, place)
