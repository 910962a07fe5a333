"""Turns on one device, between a real training loop's hooks and a real generator process."""

import functools
import time

import lightning as L
import pytest

from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.stream import PoolStream
from mflight.training.callbacks.shared_device import SharedDevice, sharing_figures
from tests.unit.synthesis.squares import generator_settings
from tests.unit.training.foreign import ForeignModule

PATIENCE_S = 120


def num_samples(pool):
    return len(PoolReader(pool).poll())


@pytest.fixture
def shared(tmp_path, build_datamodule):
    """Start a training that shares its device; return callback, trainer and data."""
    begun = []

    def begin(sharing, **settings):
        data = build_datamodule(
            stream=functools.partial(PoolStream, pool_dir=tmp_path),
            generator=generator_settings(tmp_path, stop_timeout_s=0.0, **settings),
            poll_s=0.05,
        )
        callback = SharedDevice(sharing=sharing, turn_steps=2)
        trainer = L.Trainer(
            accelerator="cpu", logger=False, callbacks=[callback], enable_checkpointing=False, max_steps=1
        )
        trainer.datamodule = data
        data.setup("fit")
        begun.append(data)
        callback.setup(trainer, ForeignModule(), "fit")
        return callback, trainer, data

    yield begin
    for data in begun:
        data.teardown("fit")


def test_a_pool_is_filled_before_training_and_its_device_is_free_then(tmp_path, shared):
    callback, trainer, data = shared("fill_first", num_samples=5)
    assert num_samples(tmp_path) == 5 and data.synthetic.report.alive == 0
    assert callback.fill_s > 0 and sharing_figures(trainer) == callback.figures


def test_generators_draw_only_in_their_turn_and_never_beside_the_training(tmp_path, shared):
    callback, trainer, data = shared("take_turns", takes_turns=True)
    deadline = time.monotonic() + PATIENCE_S

    def train(batches):
        for _ in range(batches):
            callback.on_train_batch_start(trainer, ForeignModule(), None, 0)

    train(1)
    assert num_samples(tmp_path) == 0 and callback.turns_s == 0
    while not num_samples(tmp_path):
        assert time.monotonic() < deadline
        train(2)
    time.sleep(0.1)  # a batch that was drawn in its turn may still be written
    before = num_samples(tmp_path)
    time.sleep(0.3)
    assert num_samples(tmp_path) == before
    assert callback.turns_s > 0
    data.synthetic.wait_for_more()  # who waits for a sample hands the device over as well
    callback.on_train_end(trainer, ForeignModule())
    callback.on_train_batch_start(trainer, ForeignModule(), None, 0)  # it has let go of the device
