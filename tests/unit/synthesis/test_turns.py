import threading

from mflight.synthesis.turns import Turns


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
    assert not generator._try_to_take()
    trainer.close()
    assert generator._try_to_take()
    generator.close()


def test_nobody_waits_long_for_a_generator_that_does_not_draw(tmp_path):
    trainer = Turns(tmp_path)
    trainer.take()
    assert trainer.hand_over(patience_s=0.05) >= 0.05
    other = Turns(tmp_path)
    assert not other._try_to_take()
    trainer.close()
