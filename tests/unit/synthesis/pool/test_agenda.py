import itertools

import pytest

from mflight.synthesis.pool.agenda import Agenda
from mflight.synthesis.pool.index import PoolIndex
from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.squares import make_sample

DROPPED = {1, 2, 5, 9}


def request_id(index):
    return f"7-{index:08d}"


class Worker:
    """Answers one batch at a time, as a generator process does."""

    def __init__(self, folder, index, num_workers, num_samples, max_requests=None, block_size=1):
        self.writer = PoolWriter(folder, f"w{index}")
        self.agenda = Agenda(
            PoolIndex(folder),
            request_id,
            worker_index=index,
            num_workers=num_workers,
            block_size=block_size,
            num_samples=num_samples,
            max_requests=max_requests,
        )

    def step(self, batch_size):
        """Return the requests answered, or None once there is nothing left."""
        if self.agenda.is_done():
            return None
        batch = self.agenda.take(batch_size)
        for index in batch:
            if index in DROPPED:
                self.writer.drop(request_id(index), [], index=index)
            else:
                self.writer.append(make_sample(index), index=index)
        return batch


def run_to_end(workers, batch_sizes):
    answered, stuck = [], 0
    for batch_size in itertools.cycle(batch_sizes):
        batches = [worker.step(batch_size) for worker in workers]
        if all(batch is None for batch in batches):
            break
        stuck = 0 if any(batches) else stuck + 1
        assert stuck < 3, f"nobody goes on after {sorted(answered)}"
        answered += [index for batch in batches for index in batch or []]
    for worker in workers:
        worker.writer.close()
    return answered


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("batch_sizes", [[1], [3], [100], [4, 1]])
def test_the_same_requests_are_answered_whatever_batch_and_workers(
    tmp_path, num_workers, batch_sizes, block_size
):
    workers = [
        Worker(tmp_path, index, num_workers, num_samples=7, block_size=block_size)
        for index in range(num_workers)
    ]
    answered = run_to_end(workers, batch_sizes)
    assert sorted(answered) == list(range(11))  # 0 3 4 6 7 8 10 are kept; 1 2 5 9 are not


def test_a_later_run_with_other_workers_ends_at_the_same_request(tmp_path):
    first = Worker(tmp_path, 0, 1, num_samples=7)
    assert first.step(2) == [0, 1]
    assert first.step(2) == [2, 3]
    first.writer.close()
    workers = [Worker(tmp_path, index, 2, num_samples=7) for index in range(2)]
    assert sorted(run_to_end(workers, [5])) == list(range(4, 11))


def test_a_full_pool_needs_nothing_and_a_higher_goal_continues_it(tmp_path):
    run_to_end([Worker(tmp_path, 0, 1, num_samples=3)], [2])
    assert run_to_end([Worker(tmp_path, 0, 1, num_samples=3)], [2]) == []
    assert run_to_end([Worker(tmp_path, 0, 1, num_samples=5)], [2]) == [5, 6, 7]


def test_the_bound_of_requests_ends_before_the_goal(tmp_path):
    assert run_to_end([Worker(tmp_path, 0, 1, num_samples=50, max_requests=4)], [3]) == [0, 1, 2, 3]
    without_goal = Worker(tmp_path, 0, 1, num_samples=None, max_requests=6)
    assert run_to_end([without_goal], [100]) == [4, 5]


def test_neighbours_go_to_the_same_worker(tmp_path):
    workers = [Worker(tmp_path, i, 2, num_samples=None, max_requests=16, block_size=4) for i in range(2)]
    batches = [[worker.agenda.take(4) for worker in workers] for _ in range(2)]
    assert batches == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11], [12, 13, 14, 15]]]
