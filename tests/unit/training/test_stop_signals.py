import os
import signal
import time

import pytest

from mflight.training.callbacks.stop_signals import Stopped, StopSignals


class Strategy:
    """Of a rank that the others have told nothing."""

    def reduce_boolean_decision(self, decision, all):
        assert not all
        return decision


class Trainer:
    world_size, global_step, is_last_batch = 1, 5, False
    strategy = Strategy()

    def __init__(self):
        self.saved = []

    def save_checkpoint(self, path):
        self.saved.append(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_the_training_a_signal_stops_at_once(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, StopSignals(checkpoint=tmp_path / "last.ckpt"):
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert stopped.value.code == 128 + number and signal.getsignal(number) == before


def test_during_the_training_the_batch_ends_and_is_saved(tmp_path):
    trainer = Trainer()
    with pytest.raises(Stopped) as stopped, StopSignals(checkpoint=tmp_path / "last.ckpt") as signals:
        signals.on_train_start(trainer, None)
        signals.on_train_batch_end(trainer)
        os.kill(os.getpid(), signal.SIGTERM)
        signals.on_train_batch_start(trainer)  # of this batch: nothing is saved yet
        assert trainer.saved == []
        signals.on_train_batch_end(trainer)
        assert trainer.saved == [tmp_path / "last.ckpt"]
        signals.on_train_batch_start(trainer)
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_batch_that_does_not_end_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("mflight.training.callbacks.stop_signals._PATIENCE_S", 0.05)
    with pytest.raises(Stopped) as stopped, StopSignals(checkpoint=tmp_path / "last.ckpt") as signals:
        signals.on_train_start(Trainer(), None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert stopped.value.code == 143


def test_a_second_wish_to_stop_is_obeyed_by_a_rank_alone(tmp_path):
    trainer = Trainer()
    with pytest.raises(Stopped), StopSignals(checkpoint=tmp_path / "last.ckpt") as signals:
        signals.on_train_start(trainer, None)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    trainer.world_size = 2  # Ctrl-C and the launcher tell each rank
    with StopSignals(checkpoint=tmp_path / "last.ckpt") as signals:
        signals.on_train_start(trainer, None)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        signals.on_train_batch_end(trainer)
    assert trainer.saved == [tmp_path / "last.ckpt"]


def test_the_state_before_a_validation_is_kept_and_a_signal_ends_the_validation(tmp_path):
    trainer = Trainer()
    with pytest.raises(Stopped), StopSignals(checkpoint=tmp_path / "last.ckpt") as signals:
        signals.on_train_start(trainer, None)
        trainer.is_last_batch = True
        signals.on_train_batch_end(trainer)
        assert trainer.saved == [tmp_path / "last.ckpt"]
        signals.on_validation_batch_start()
        os.kill(os.getpid(), signal.SIGTERM)
        signals.on_validation_batch_start()
