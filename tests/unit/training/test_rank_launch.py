import pytest

from mflight.training.rank_launch import must_launch_ranks


@pytest.fixture(autouse=True)
def nobody_has_started_ranks(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def test_only_the_process_of_a_user_starts_ranks(monkeypatch):
    assert [must_launch_ranks(ranks, 1) for ranks in (1, 2)] == [False, True]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not must_launch_ranks(2, 1) and not must_launch_ranks(2, 2)


def test_several_hosts_need_somebody_who_starts_them(monkeypatch):
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=3 needs torchrun or srun"):
        must_launch_ranks(1, 3)
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert not must_launch_ranks(1, 3)
