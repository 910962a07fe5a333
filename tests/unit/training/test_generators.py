import time

from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.signals import mark_generating
from mflight.training.generators import Generators
from tests.unit.synthesis.squares import generator_settings

PATIENCE_S = 120


def generators(pool, service=(), **settings):
    of_service = generator_settings(pool, **{"stop_timeout_s": 0.0, **dict(service)})
    return Generators(settings=of_service, pool_dir=pool, poll_s=0.05, **settings)


def num_samples(pool):
    return len(PoolReader(pool).poll())


def wait_until(happened):
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_pool_filled_first_holds_what_was_ordered_and_its_device_is_free(tmp_path):
    filled = generators(tmp_path, {"num_samples": 5}, sharing="fill_first")
    filled.start()
    assert num_samples(tmp_path) == 5
    assert filled.fill_s > 0 and filled.report.alive == 0
    assert not filled.more_may_come()
    filled.stop()
    assert filled.messages == []


def test_generators_draw_only_in_their_turn_and_never_beside_the_training(tmp_path):
    shared = generators(tmp_path, {"takes_turns": True}, sharing="take_turns", turn_steps=2)
    shared.start()
    wait_until(lambda: shared.report.statuses[0].state == "loading" and shared.report.statuses[0].pid)

    def train(batches):
        for _ in range(batches):
            shared.count_batch()

    train(1)
    assert num_samples(tmp_path) == 0 and shared.turns_s == 0
    wait_until(lambda: train(2) or num_samples(tmp_path) >= 1)
    time.sleep(0.1)  # a batch that was drawn in its turn may still be written
    before = num_samples(tmp_path)
    time.sleep(0.3)
    assert num_samples(tmp_path) == before
    assert shared.turns_s > 0
    shared.stop()


def test_other_ranks_learn_that_nothing_more_will_come(tmp_path):
    follower = generators(tmp_path, rank=1)
    leader = generators(tmp_path, {"max_restarts": 0, "synthesizer": {"error_at": 0}})
    mark_generating(tmp_path, True)
    follower.start()
    assert follower.more_may_come() and follower.report is None
    leader.start()
    wait_until(lambda: not leader.more_may_come())
    wait_until(lambda: not follower.more_may_come())
    assert "given up after 1 deaths" in leader.messages[0]
    leader.stop()
    follower.stop()


def test_traces_of_a_kill_are_told_at_the_start(tmp_path):
    first = generators(tmp_path, {"max_requests": 3})
    first.start()
    wait_until(lambda: not first.more_may_come())
    first.stop()
    with (tmp_path / "shard-w0-00000.tar").open("ab") as shard:
        shard.write(bytes(1000))
    again = generators(tmp_path, {"max_requests": 3})
    again.start()
    again.stop()
    (message,) = again.messages
    assert "shard-w0-00000.tar holds 1000 bytes that its index does not speak of" in message
