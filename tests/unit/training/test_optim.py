import pytest
import torch

from mflight.training.optim import warmup_cosine, warmup_multistep


def rates(build, num_steps, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build(optimizer, **settings)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_multistep_by_hand():
    found = rates(warmup_multistep, 8, warmup_steps=4, warmup_start=0.2, milestones_steps=[5, 7], gamma=0.1)
    assert found == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 0.2, 0.2, 0.02])


def test_cosine_by_hand():
    found = rates(warmup_cosine, 8, total_steps=6, warmup_steps=2, final=0.1)
    half_way = 2.0 * (0.1 + 0.9 * 0.5)
    assert found[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert found[4] == pytest.approx(half_way)
    assert found[6:] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(
    ("build", "settings", "value"),
    [
        (warmup_cosine, {"total_steps": 0}, "0"),
        (warmup_multistep, {"gamma": 1.5}, r"1\.5"),
        (warmup_multistep, {"warmup_steps": -3}, "-3"),
    ],
)
def test_settings_out_of_range_are_told(build, settings, value):
    with pytest.raises(ValueError, match=rf"input_value={value}"):
        rates(build, 1, **settings)


def test_a_run_that_ends_before_a_milestone_is_refused():
    with pytest.raises(ValueError, match=r"below trainer.max_steps=7, got \[5, 7\]"):
        rates(warmup_multistep, 1, milestones_steps=[5, 7], total_steps=7)
    assert rates(warmup_multistep, 1, warmup_steps=0, milestones_steps=[5, 7], total_steps=8) == [2.0]
