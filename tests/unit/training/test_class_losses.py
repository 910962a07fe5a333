"""The running loss of each class, against numbers worked by hand."""

import math
import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist

from mflight.training.class_losses import ClassLosses

EVEN = torch.tensor([[1 / 3, 1 / 3]])  # scores of two classes, as likely as the background: a loss of ln 3
SURE_OF_1 = torch.tensor([[1 / 2, 1 / 4]])
REAL, SYNTHETIC = {"is_synthetic": False}, {"is_synthetic": True}


def observed(*steps, **settings):
    losses = ClassLosses(2, **settings)
    for scores, labels, targets in steps:
        losses.observe(torch.cat(scores), [torch.tensor(own) for own in labels], targets)
    return losses


def test_the_mean_is_over_the_proposals_of_a_class_and_forgets():
    losses = observed(([EVEN, SURE_OF_1, EVEN], [[1, 1], [0]], [REAL, REAL]))
    assert losses.means() == {}
    losses.update(1.0)
    assert losses.means() == {1: pytest.approx((math.log(3) + math.log(2)) / 2)}
    losses.observe(torch.cat([SURE_OF_1, SURE_OF_1]), [torch.tensor([1, 2])], [REAL])
    losses.update(0.5)
    of_1 = (0.5 * (math.log(3) + math.log(2)) + math.log(2)) / (0.5 * 2 + 1)
    assert losses.means() == {1: pytest.approx(of_1), 2: pytest.approx(math.log(4))}
    losses.update(0.5)  # nothing was seen: the means stay
    assert losses.means() == {1: pytest.approx(of_1), 2: pytest.approx(math.log(4))}


def test_synthetic_images_count_by_setting():
    step = ([EVEN, SURE_OF_1], [[1], [2]], [REAL, SYNTHETIC])
    for images, expected in (("real", {1}), ("all", {1, 2})):
        losses = observed(step, images=images)
        losses.update(1.0)
        assert set(losses.means()) == expected


def test_it_goes_on_from_its_state_in_mid_interval():
    losses = observed(([EVEN, SURE_OF_1], [[1, 1]], [REAL]))
    losses.update(0.5)
    losses.observe(SURE_OF_1, [torch.tensor([2])], [REAL])
    resumed = ClassLosses(2)
    resumed.load_state_dict(losses.state_dict())
    for one in (losses, resumed):
        one.observe(EVEN, [torch.tensor([2])], [REAL])
        one.update(0.5)
    assert resumed.means() == losses.means()
    assert losses.means()[2] == pytest.approx((math.log(4) + math.log(3)) / 2)


def _rank(rank, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    losses, resumed = ClassLosses(2), ClassLosses(2)
    losses.observe(EVEN.repeat(1 + rank, 1), [torch.tensor([1 + rank] * (1 + rank))], [REAL])
    resumed.load_state_dict(losses.state_dict())
    for one in (losses, resumed):
        one.update(1.0)
    results.put([one.state_dict()["sums"].tolist() for one in (losses, resumed)])
    dist.destroy_process_group()


def test_two_ranks_know_the_same_and_a_resumed_run_counts_nothing_twice():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # a spawned process would import torch anew
    results = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(rank, port, results), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    ln3 = math.log(3)
    expected = [[0, pytest.approx(ln3), pytest.approx(2 * ln3)], [0, 1, 2]]
    for _ in ranks:
        for sums in results.get():
            assert sums == expected
