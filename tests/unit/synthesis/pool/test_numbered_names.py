import pickle
import random

from mflight.synthesis.pool.numbered_names import NumberedNames


def test_it_is_the_set_of_its_names():
    draws = random.Random(3)
    names = {f"7-{draws.randrange(20000):08d}" for _ in range(3000)}
    names |= {"7-42", "7-0042", "42", "painter", "", "x-9" * 20, f"y-{10**30}"}
    taken = NumberedNames(names)
    assert taken == names and len(taken) == len(names)
    assert not any(f"7-{number}" in taken for number in range(1, 40)) and 42 not in taken
    for name in sorted(names)[::2]:
        taken.discard(name)
        taken.discard(name)
    taken.add("painter")
    taken.add("painter")
    assert taken == set(sorted(names)[1::2]) | {"painter"}
    assert pickle.loads(pickle.dumps(taken)) == taken


def test_dense_names_take_about_a_bit_each():
    taken = NumberedNames(f"7-{number:08d}" for number in range(100_000))
    assert len(taken) == 100_000 and len(pickle.dumps(taken)) < 20_000
