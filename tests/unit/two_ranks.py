"""A function on two ranks that talk to each other, each in a process of its own."""

import multiprocessing

import torch
import torch.distributed as dist


def on_two_ranks(function, folder):
    """Return what ``function(rank)`` returns on rank 0 and on rank 1; plain numbers and lists."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [context.Process(target=_run, args=(function, rank, folder, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    answers = dict(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return answers[0], answers[1]


def _run(function, rank, folder, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    queue.put((rank, function(rank)))
    dist.destroy_process_group()
