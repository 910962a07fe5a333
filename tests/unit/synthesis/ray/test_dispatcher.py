import random

from mflight.synthesis.pool.agenda import Agenda
from mflight.synthesis.pool.index import PoolIndex
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.ray.dispatcher import Dispatcher
from tests.unit.synthesis.squares import make_sample


def request_id(index):
    return f"7-{index:08d}"


def dispatcher(folder, **goals):
    PoolWriter(folder, "w0").close()
    return Dispatcher(Agenda(PoolIndex(folder), request_id, **goals))


def test_what_a_dead_generator_had_goes_to_the_next_one_before_new_requests(tmp_path):
    hands = dispatcher(tmp_path)
    assert hands.take(0, 3) == [0, 1, 2]
    assert hands.take(1, 2) == [3, 4]
    assert hands.answer(0, 0)
    assert hands.give_back(0) == []
    assert not hands.answer(0, 1)  # too late: somebody else will answer it
    assert hands.take(1, 4) == [1, 2, 5, 6]
    assert hands.in_hand(1) == (3, 4, 1, 2, 5, 6)


def test_a_request_that_ends_its_generators_goes_out_alone_and_then_no_more(tmp_path):
    hands = dispatcher(tmp_path, max_requests=5)
    assert hands.take(0, 3) == [0, 1, 2]
    assert hands.give_back(0, num_suspects=2) == []
    assert hands.take(1, 3) == [0]  # alone, so that its neighbour is not blamed with it
    assert hands.take(2, 3) == [1]
    assert hands.answer(2, 1)
    assert hands.give_back(1, num_suspects=1) == []
    assert hands.take(1, 3) == [0]
    assert hands.give_back(1, num_suspects=1) == [0] == hands.left_out
    assert hands.take(2, 3) == [2, 3, 4]
    assert not hands.is_done()
    assert all(hands.answer(2, index) for index in (2, 3, 4))
    assert hands.is_done()


def test_generators_that_die_at_random_answer_each_request_once(tmp_path):
    draws = random.Random(0)
    hands = dispatcher(tmp_path, num_samples=40)
    answered = []
    with PoolWriter(tmp_path, "w0") as writer:
        while not hands.is_done():
            generator = draws.randrange(3)
            hands.take(generator, draws.randrange(4))
            held = hands.in_hand(generator)
            for index in held[: draws.randrange(4)]:
                if hands.answer(generator, index):
                    answered.append(index)
                    if index % 4 == 3:
                        writer.drop(request_id(index), [], index=index)
                    else:
                        writer.append(make_sample(index), index=index)
            if draws.random() < 0.3:
                hands.give_back(generator)
    assert sorted(answered) == list(range(max(answered) + 1))  # none twice, none lost
    assert len(PoolReader(tmp_path).poll()) == 40  # and none too many
