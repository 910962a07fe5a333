import pytest

from mflight.training.devices import split_devices


def split(num_gpus, *, num_cores=16, batch=16, synthesis=True, **choices):
    return split_devices(
        num_gpus=num_gpus, num_cores=num_cores, global_batch_size=batch, needs_synthesis=synthesis, **choices
    )


@pytest.mark.parametrize(
    ("num_gpus", "trainer", "drawing"),
    [
        (0, 1, ("cpu",)),
        (1, (0,), ("cuda:0",)),
        (2, (0,), ("cuda:1",)),
        (3, (0, 1), ("cuda:2",)),
        (4, (0, 1), ("cuda:2", "cuda:3")),
        (5, (0, 1, 2, 3), ("cuda:4",)),
        (6, (0, 1, 2, 3), ("cuda:4", "cuda:5")),
        (7, (0, 1, 2, 3), ("cuda:4", "cuda:5", "cuda:6")),
        (8, (0, 1, 2, 3), ("cuda:4", "cuda:5", "cuda:6", "cuda:7")),
    ],
)
def test_the_trainers_divide_the_batch_and_leave_some_to_draw(num_gpus, trainer, drawing):
    outcome = split(num_gpus)
    assert (outcome.trainer_devices, outcome.synthesis_devices) == (trainer, drawing)
    assert outcome.accelerator == ("gpu" if num_gpus else "cpu")


@pytest.mark.parametrize("num_gpus", range(9))
def test_only_a_single_gpu_is_shared(num_gpus):
    outcome = split(num_gpus)
    assert outcome.shares_gpu == (num_gpus == 1)
    assert not split(num_gpus, synthesis=False).shares_gpu
    if num_gpus > 1:
        drawing = {int(name.removeprefix("cuda:")) for name in outcome.synthesis_devices}
        assert drawing.isdisjoint(outcome.trainer_devices)


@pytest.mark.parametrize(("num_gpus", "num_trainers"), [(1, 1), (2, 2), (3, 2), (7, 4), (8, 8)])
def test_without_synthesis_all_that_divide_the_batch_train(num_gpus, num_trainers):
    outcome = split(num_gpus, synthesis=False)
    assert outcome.trainer_devices == tuple(range(num_trainers)) and outcome.synthesis_devices == ()


def test_a_batch_that_seven_divides_takes_seven():
    assert split(8, batch=14).trainer_devices == tuple(range(7))


def test_the_trainer_keeps_away_from_the_gpus_named_for_drawing():
    outcome = split(4, synthesis_devices=["cuda:0"], batch=12)
    assert outcome.trainer_devices == (1, 2, 3) and outcome.synthesis_devices == ("cuda:0",)


def test_generators_on_the_cpu_leave_all_gpus_to_the_trainer():
    assert split(4, synthesis_devices=["cpu"]).trainer_devices == (0, 1, 2, 3)


def test_the_generators_take_what_named_trainers_leave():
    assert split(4, trainer_devices=[1, 3]).synthesis_devices == ("cuda:0", "cuda:2")


def test_two_processes_on_a_cpu_halve_the_cores():
    outcome = split(0, num_cores=2)
    assert outcome.trainer_threads == outcome.synthesis_threads == 1
    assert split(0, num_cores=2, synthesis=False).trainer_threads == 2
    assert split(0, num_cores=1).trainer_threads == 1


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"trainer_devices": 3}, "got 3 devices for a batch of 16"),
        ({"trainer_devices": 0}, "got 0 devices for a batch of 16"),
        ({"trainer_devices": [1, 4]}, r"GPUs in 0\.\.3, got 4"),
        ({"synthesis_devices": ["cuda:9"]}, "which has 4, got cuda:9"),
        ({"trainer_devices": [0, 1], "synthesis_devices": ["cuda:1"]}, "both have cuda:1"),
        ({"trainer_devices": 4}, "both have cuda:0"),
        ({"synthesis_devices": ["gpu:1"]}, "'cuda:0', 'cuda:1', ... or 'cpu', got 'gpu:1'"),
        ({"synthesis_devices": ["cuda:1", "cuda:1"], "trainer_devices": [0]}, "cuda:1 comes twice"),
    ],
)
def test_impossible_splits_are_told_with_their_values(choices, message):
    with pytest.raises(ValueError, match=message):
        split(4, **choices)
