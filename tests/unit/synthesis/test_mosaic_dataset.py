"""Real generator processes behind a dataset; only the diffusion model is a quick stand-in."""

import functools
import json
import time

import pytest
from torch.utils.data import DataLoader

from mflight.synthesis.mosaic_dataset import MosaicDataset
from mflight.synthesis.pool.signals import mark_generating
from mflight.synthesis.stream import PoolStream
from tests.unit.synthesis.squares import CATEGORIES, SYNTHESIZER, generator_settings

PATIENCE_S = 120


def mosaics(folder, synthesizer=(), **settings):
    classes = folder / "classes.json"
    classes.write_text(json.dumps({"images": [], "annotations": [], "categories": CATEGORIES}))
    settings = {"stop_timeout_s": 0.0, **settings}
    return MosaicDataset(
        annotation_file=classes,
        stream=functools.partial(PoolStream, pool_dir=folder, max_reuse=1, poll_interval_s=0.05),
        generator=generator_settings(folder, synthesizer, **settings),
        poll_s=0.05,
    )


def wait_until(happened):
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_iterating_draws_what_was_ordered_and_stops_the_generators(tmp_path):
    dataset = mosaics(tmp_path, num_samples=5)
    samples = list(dataset)
    assert [target["sample_id"] for _, target in samples] == [f"7-{n:08d}" for n in (0, 1, 2, 4, 5)]
    assert all(len(image) == 3 and len(target["masks"]) == 3 for image, target in samples)
    assert (dataset.report.alive, dataset.messages) == (0, [])
    again = mosaics(tmp_path, num_samples=5)
    assert len(list(again)) == 5 and again.report.total("requests") == 6  # nothing was drawn twice


def test_a_generator_that_is_given_up_ends_the_iteration_with_its_reason(tmp_path):
    seen = []
    with pytest.raises(RuntimeError, match=r"no generator is left: .*ValueError: request 2 is cursed"):
        for _, target in mosaics(tmp_path, {"error_at": 2}, max_restarts=0):
            seen.append(target["sample_id"])
    assert seen == ["7-00000000", "7-00000001"]


def test_workers_of_a_loader_share_the_samples_of_generators_that_run(tmp_path):
    dataset = mosaics(tmp_path, num_samples=5)
    with pytest.raises(RuntimeError, match="before the workers of a DataLoader"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=2)))
    with dataset:
        names = [target["sample_id"] for _, target in DataLoader(dataset, batch_size=None, num_workers=2)]
    assert sorted(names) == [f"7-{n:08d}" for n in (0, 1, 2, 4, 5)]


def test_a_pool_filled_first_holds_what_was_ordered_and_its_device_is_free(tmp_path):
    dataset = mosaics(tmp_path, num_samples=5)
    assert dataset.fill() > 0
    assert dataset.report.alive == 0 and not dataset.more_may_come()
    assert len(list(dataset)) == 5
    dataset.stop()
    assert dataset.messages == []


def test_other_ranks_learn_that_nothing_more_will_come(tmp_path):
    leader, follower = mosaics(tmp_path, {**SYNTHESIZER, "error_at": 0}, max_restarts=0), mosaics(tmp_path)
    mark_generating(tmp_path, True)
    follower.open(rank=1, world_size=2)
    follower.start()
    assert follower.more_may_come() and follower.report is None
    leader.start()
    wait_until(lambda: not leader.more_may_come())
    wait_until(lambda: not follower.more_may_come())
    assert "given up after 1 deaths" in leader.messages[0]
    leader.stop()
    follower.stop()


def test_traces_of_a_kill_are_told_at_the_start(tmp_path):
    assert len(list(mosaics(tmp_path, max_requests=3))) == 3
    with (tmp_path / "shard-w0-00000.tar").open("ab") as shard:
        shard.write(bytes(1000))
    again = mosaics(tmp_path, max_requests=3)
    again.start()
    again.stop()
    (message,) = again.take_messages()
    assert "shard-w0-00000.tar holds 1000 bytes that its index does not speak of" in message
    assert again.take_messages() == []
