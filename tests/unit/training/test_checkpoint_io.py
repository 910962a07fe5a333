import errno
import logging
import os
import re

import pytest
import torch

from mflight.training.checkpoint_io import CLASSES, SafeCheckpointIO, open_checkpoint
from mflight.training.datamodule import MixedDataModule


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


def test_a_checkpoint_of_other_classes_is_refused(tmp_path, build_datamodule):
    datamodule, file = build_datamodule(), tmp_path / "last.ckpt"
    names, state = datamodule.categories.names, datamodule.state_dict()
    held = {"state_dict": {}, "global_step": 3, "class_counts": torch.ones(24), CLASSES: state}
    assert CLASSES == MixedDataModule.__qualname__  # under which Lightning keeps the state
    SafeCheckpointIO().save_checkpoint(held, file)
    assert open_checkpoint(file, key="resume_from", categories=names)["global_step"] == 3
    first, second = names[1], names[2]
    swapped, told = {**names, 1: second, 2: first}, f"category 1 is {first!r} and {second!r}"
    with pytest.raises(ValueError, match=rf"resume_from=.*{re.escape(told)}"):
        open_checkpoint(file, key="resume_from", categories=swapped)
    with pytest.raises(ValueError, match=r"last.ckpt .* the same category ids, \[77\] are in one"):
        open_checkpoint(file, key="checkpoint", categories={**names, 77: "kite"})
    del held[CLASSES]  # one of before
    SafeCheckpointIO().save_checkpoint(held, file)
    open_checkpoint(file, key="resume_from", categories=swapped)
    with pytest.raises(ValueError, match="was trained on 24 classes, the dataset has 1"):
        open_checkpoint(file, key="resume_from", categories={1: first})


@pytest.mark.parametrize("content", [b"", b"<html>", "cut", {"weights": 3}])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    file = tmp_path / "last.ckpt"
    torch.save(content if isinstance(content, dict) else {"state_dict": {}, "global_step": 3}, file)
    if not isinstance(content, dict):
        file.write_bytes(file.read_bytes()[:200] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"checkpoint=.*last.ckpt (cannot be read as|must be) a checkpoint"):
        open_checkpoint(file, key="checkpoint")
