import fcntl
import os
import threading

from mflight.synthesis.turns import Turns


def is_free(folder):
    descriptor = os.open(folder / "device.lock", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_the_other_side_has_one_turn_and_the_device_comes_back(tmp_path):
    trainer, generator = Turns(tmp_path), Turns(tmp_path)
    trainer.take()
    order = []

    def draw():
        with generator.turn():
            order.append("drawn")

    drawing = threading.Thread(target=draw)
    drawing.start()
    order.append("trained")
    assert trainer.hand_over(patience_s=60.0) < 60.0
    order.append("trained")
    drawing.join()
    assert order == ["trained", "drawn", "trained"]
    assert not is_free(tmp_path)
    trainer.close()
    assert is_free(tmp_path)
    generator.close()


def test_nobody_waits_long_for_a_generator_that_does_not_draw(tmp_path):
    trainer = Turns(tmp_path)
    trainer.take()
    assert trainer.hand_over(patience_s=0.05) >= 0.05
    assert not is_free(tmp_path)
    trainer.close()
