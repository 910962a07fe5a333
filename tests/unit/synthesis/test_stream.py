import os
from collections import Counter
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mflight.data.downscale import RandomDownscale
from mflight.data.mixing import MixedBatches
from mflight.data.share import SyntheticShare
from mflight.data.target import check_target
from mflight.data.transforms import TrainTransform
from mflight.synthesis.pool.index import PoolError, PoolIndex, tell_uses
from mflight.synthesis.pool.packing import decode_sample, encode_sample, unpack_sample
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.pool_target import to_target
from mflight.synthesis.stream import PoolStream
from tests.unit.synthesis.squares import categories, make_sample


def fill(folder, indices, writer_name="w0", **sample):
    with PoolWriter(folder, writer_name, image_format="png") as writer:
        for index in indices:
            writer.append(make_sample(index, **sample), index=index)


def stream(folder, **settings):
    return PoolStream(pool_dir=folder, categories=categories(), **{"poll_interval_s": 0.0, **settings})


def uses_in(folder):
    index = PoolIndex(folder)
    found = dict(index.rows("SELECT request_index, uses FROM requests WHERE uses > 0"))
    index.close()
    return found


def take(source, count):
    refs = [source.next_ref() for _ in range(count)]
    return [ref and ref.index for ref in refs]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    fill(folder, range(0, 8, 2), "w1")
    fill(folder, range(1, 8, 2), "w0")
    return folder


def snapshot(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_reader_that_does_not_publish_leaves_the_pool_as_it_is(tmp_path):
    fill(tmp_path, range(4))
    drawing = stream(tmp_path)  # of the run that draws: it tells its uses
    take(drawing, 1)
    take(drawing, 1)
    before, other = snapshot(tmp_path), stream(tmp_path, publish=False)
    assert uses_in(tmp_path) == {0: 1} and len(list(islice(other, 4))) == 4
    assert snapshot(tmp_path) == before


def test_read_gives_image_and_target_of_the_contract(pool):
    source = stream(pool, publish=False)
    ref = source.next_ref()
    image, target = source.read(ref)
    sample = make_sample(0)
    check_target(target, (32, 32), num_classes=4)
    assert torch.equal(image, torch.from_numpy(sample.image).permute(2, 0, 1))
    assert target["boxes"].tolist() == [[6, 4, 10, 20]]
    assert target["area"].tolist() == [64.0] == [target["masks"].sum().item()]
    assert target["labels"].tolist() == [1]  # category_id 2 is the first class
    assert (target["is_synthetic"], target["sample_id"], target["image_id"]) == (True, "7-00000000", -1)


def test_a_pool_is_used_up_when_no_sample_is_under_its_cap(tmp_path):
    source = stream(tmp_path, max_reuse=2, poll_interval_s=1000.0)
    assert source.is_used_up() and source.next_ref() is None
    fill(tmp_path, [0])
    assert not source.is_used_up()  # looks now, whenever it has looked before
    assert take(source, 1) == [0] and not source.is_used_up()
    assert [source.num_uses(ref) for ref in [source.next_ref()]] == [2]
    assert source.is_used_up()


def rescued_sample(index=0):
    """A sample of two regions beside the good one: both were rejected."""
    sample = make_sample(index)
    rejected = [
        {"category_id": 9, "box": [16, 0, 32, 20], "rejected": "too_small"},
        {"category_id": 5, "box": [12, 16, 32, 32], "rejected": "no_component"},
    ]
    return replace(sample, regions=[*sample.regions, *rejected])


def encoded(sample, image_format="png"):
    return unpack_sample(encode_sample(sample, image_format, 95), sample.sample_id)


def test_rejected_regions_of_a_rescued_canvas_are_ignored_and_their_classes_not_exhaustive(tmp_path):
    with PoolWriter(tmp_path, "w0", image_format="png") as writer:
        writer.append(rescued_sample(), index=0)
    source = stream(tmp_path, publish=False)
    _, target = source.read(source.next_ref())
    check_target(target, (32, 32), num_classes=4)
    assert target["ignore_boxes"].tolist() == [[16, 0, 32, 20], [12, 16, 32, 32]]
    assert target["labels"].tolist() == [1] and target["not_exhaustive_labels"].tolist() == [2, 3]


def test_the_background_is_ignored_where_it_shall_not_be_learnt_from(pool):
    for background_loss, parts in ((True, []), (False, [[0, 0, 32, 32]])):
        source = stream(pool, publish=False, background_loss=background_loss)
        _, target = source.read(source.next_ref())
        check_target(target, (32, 32), num_classes=4)
        assert target["ignore_boxes"].tolist() == parts


def test_a_rejected_region_of_an_unknown_class_is_told_by_name():
    sample = rescued_sample()
    sample.regions[1]["category_id"] = 77
    with pytest.raises(PoolError, match="7-00000000: category_id 77 is none of the 4"):
        to_target(encoded(sample), categories(), 0)


def test_the_image_is_the_one_that_the_pool_shows_in_either_format():
    for image_format in ("jpeg", "png"):
        sample = make_sample(3)
        span = encode_sample(sample, image_format, 95)
        image, _ = to_target(unpack_sample(span, sample.sample_id), categories(), 3)
        expected = decode_sample(span, sample.sample_id).image
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.permute(1, 2, 0), expected)
    np.testing.assert_array_equal(expected, sample.image)


def test_an_image_that_is_cut_or_of_16_bits_is_a_pool_error():
    sample = encoded(make_sample(3), "jpeg")
    for size in (len(sample.picture) // 2, 10, 0):
        with pytest.raises(PoolError, match="7-00000003: its image cannot be decoded"):
            to_target(replace(sample, picture=sample.picture[:size]), categories(), 3)
    _, deep = cv2.imencode(".png", np.zeros((32, 32, 3), dtype=np.uint16))
    with pytest.raises(PoolError, match=r"7-00000003: .*8 bits a channel, got torch.uint16"):
        to_target(replace(sample, picture=deep.tobytes()), categories(), 3)


@pytest.mark.parametrize(
    ("rle", "told"),
    [
        ({"size": [4, 4], "counts": [1, 400_000_000]}, r"non-empty \[32, 32\], got \[4, 4\]"),
        (
            {"size": [32, 32], "counts": [1, 400_000_000]},
            "a mask's runs must be >= 0 and fill at most 32 x 32 px, got 400000001 px",
        ),
        ({"size": [32, 32], "counts": [5, 0, 11]}, r"non-empty \[32, 32\], got \[32, 32\], empty"),
    ],
)
def test_a_mask_that_is_none_is_a_pool_error_and_never_drawn(rle, told):
    sample = encoded(make_sample(3))
    sample.annotations[0]["segmentation"] = rle
    with pytest.raises(PoolError, match=f"sample 7-00000003: .*{told}"):
        to_target(sample, categories(), 3)


def test_fresh_ones_come_in_order_before_used_ones_and_none_beyond_the_cap(pool):
    source = stream(pool, max_reuse=3, publish=False)
    taken = take(source, 30)
    assert taken[:8] == list(range(8))
    assert sorted(taken[8:16]) == sorted(taken[16:24]) == list(range(8))
    assert taken[8:16] != taken[16:24] != list(range(8))  # drawn by the seed
    assert taken[24:] == [None] * 6
    assert take(stream(pool, max_reuse=3, publish=False), 30) == taken
    assert take(stream(pool, max_reuse=3, publish=False, seed=1), 30) != taken


def test_a_new_sample_comes_before_every_used_one(tmp_path):
    fill(tmp_path, [0, 1])
    source = stream(tmp_path)
    assert sorted(take(source, 4)) == [0, 0, 1, 1]
    fill(tmp_path, [2])
    assert take(source, 1) == [2]
    assert source.num_uses(source.next_ref()) == 2  # number 2 again, the least used one


def test_empty_pool_gives_none_at_once_and_samples_once_they_are_there(tmp_path):
    source = stream(tmp_path / "later")
    assert take(source, 2) == [None, None]
    fill(tmp_path / "later", [0])
    assert take(source, 1) == [0]


def test_the_folder_is_not_looked_at_more_often_than_stated(tmp_path):
    source = stream(tmp_path, poll_interval_s=3600.0)
    assert take(source, 1) == [None]
    fill(tmp_path, [0])
    assert take(source, 1) == [None]


def test_ranks_share_no_sample_and_miss_none(pool):
    shares = [
        set(take(stream(pool, rank=rank, world_size=3, publish=False), 8)) - {None} for rank in range(3)
    ]
    assert sorted(index for share in shares for index in share) == list(range(8))
    with pytest.raises(ValueError, match="world_size 3, got 3"):
        stream(pool, rank=3, world_size=3)


def test_state_goes_on_as_if_never_stopped_and_leaves_out_the_pending(pool):
    source = stream(pool, max_reuse=2, publish=False)
    take(source, 5)
    pending = [source.next_ref() for _ in range(2)]
    state = source.state_dict(pending)
    assert state == {"uses": {f"7-{index:08d}": 1 for index in range(5)}}
    resumed = stream(pool, max_reuse=2, publish=False)
    resumed.load_state_dict(state)
    source.release(pending)
    assert take(source, 13) == take(resumed, 13)
    resumed.load_state_dict(state)  # also in mid-flight
    assert take(resumed, 3) == [5, 6, 7]


def test_consumption_is_published_for_the_generators(tmp_path):
    fill(tmp_path, range(3))
    tell_uses(tmp_path, {"7-00000002": 99})
    other_rank = stream(tmp_path, rank=1, world_size=2)
    assert uses_in(tmp_path) == {2: 99}
    source = stream(tmp_path, max_reuse=2)  # the first rank: a new run begins
    assert uses_in(tmp_path) == {}
    pending = [source.next_ref() for _ in range(4)]
    source.next_ref()
    assert uses_in(tmp_path) == {ref.index: 1 for ref in pending[:3]} | {pending[3].index: 2}
    source.release([*pending, *pending[:1]])
    source.next_ref()
    assert sum(uses_in(tmp_path).values()) <= 1
    source.load_state_dict({"uses": {"7-00000001": 2}})
    take(source, 1)
    take(source, 1)
    assert uses_in(tmp_path) == {0: 1, 1: 2} and other_rank.num_used == 0


def test_a_folder_that_takes_no_uses_is_told_once_and_does_not_end_the_training(
    tmp_path, monkeypatch, caplog
):
    fill(tmp_path, range(2))
    source = stream(tmp_path)

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PoolIndex, "transaction", refuse)
        assert take(source, 2) == [0, 1]
        take(source, 1)
    assert caplog.text.count("No space left on device") == 1 and str(tmp_path) in caplog.text
    take(source, 1)
    assert uses_in(tmp_path) in ({0: 2, 1: 1}, {0: 1, 1: 2})  # the last use is told at the next look


def test_torn_sample_and_unknown_class_are_told_by_name(tmp_path):
    fill(tmp_path, [0, 1])
    fill(tmp_path, [2], category_id=77)
    source = stream(tmp_path)
    refs = [source.next_ref() for _ in range(3)]
    with pytest.raises(PoolError, match="7-00000002: category_id 77 is none of the 4"):
        source.read(refs[2])
    with open(tmp_path / "shard-w0-00000.tar", "r+b") as shard:
        shard.seek(refs[1].offset + 600)
        shard.write(b"\x00\xff\x00")
    with pytest.raises(PoolError, match="checksum"):
        source.read(refs[1])
    for ref in refs[1:]:
        source.discard(ref)
    assert take(source, 9) == [0] * 7 + [None] * 2


def test_iterating_yields_every_use_and_skips_the_unreadable(tmp_path):
    fill(tmp_path, range(4))
    os.truncate(tmp_path / "shard-w0-00000.tar", (tmp_path / "shard-w0-00000.tar").stat().st_size - 600)
    ids = [target["sample_id"] for _, target in stream(tmp_path, max_reuse=2)]
    assert Counter(ids) == {f"7-{index:08d}": 2 for index in range(3)}


def test_loader_workers_share_the_samples(pool):
    loader = DataLoader(stream(pool, max_reuse=1, publish=False), batch_size=None, num_workers=2)
    ids = [target["sample_id"] for _, target in loader]
    assert sorted(ids) == [f"7-{index:08d}" for index in range(8)]


def test_each_use_of_a_sample_has_its_own_scale_and_a_replay_the_same_ones(pool):
    class Zeros:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return torch.zeros(3, 8, 8), {"is_synthetic": False}

    def replay(seed=0):
        batches = MixedBatches(
            real=Zeros(),
            sampler=range(10),
            synthetic=stream(pool, max_reuse=3, publish=False),
            share=SyntheticShare(mixing="replace", batch_size=2, synthetic_ratio=1.0),
            epoch_steps=12,
            transforms=v2.Compose(
                [TrainTransform(flip_probability=0.0), RandomDownscale(scale_range=(0.4, 1.0), min_area_px=1)]
            ),
            seed=seed,
        )
        taken = [pair for images, targets in batches for pair in zip(images, targets, strict=True)]
        for image, target in taken:
            check_target(target, tuple(image.shape[1:]), num_classes=4)
        return [(target["sample_id"], image.shape[1]) for image, target in taken]

    uses = replay()
    assert len(uses) == 24 and min(side for _, side in uses) >= 13 and len({side for _, side in uses}) > 6
    assert any(len({side for one, side in uses if one == sample_id}) == 3 for sample_id, _ in uses)
    assert replay() == uses != replay(seed=1)


def test_mixed_batches_over_a_pool_resume_as_if_never_stopped(pool):
    class Zeros:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return torch.zeros(3, 8, 8), {"image_id": index, "is_synthetic": False}

    def mixed():
        source = stream(pool, max_reuse=3, publish=False)
        return MixedBatches(
            real=Zeros(),
            sampler=range(10),
            synthetic=source,
            share=SyntheticShare(mixing="replace", batch_size=3, synthetic_ratio=0.5),
            epoch_steps=20,
        )

    def ids(batches):
        return [target["image_id"] for _, targets in batches for target in targets if target["is_synthetic"]]

    whole = mixed()
    expected = ids(whole)
    assert len(expected) == 24 and whole.counts.fallback == 6  # 8 samples, 3 uses, 30 slots
    stopped = mixed()
    before = ids(islice(iter(stopped), 7))
    resumed = mixed()
    resumed.load_state_dict(stopped.state_dict())
    assert before + ids(resumed) == expected
    assert resumed.counts == whole.counts


def test_it_tells_the_share_of_images_that_show_a_class(tmp_path):
    with PoolWriter(tmp_path, "w0") as writer:
        for index, category_id in enumerate((2, 2, 2, 5)):
            writer.append(make_sample(index, category_id=category_id), index=index)
    assert stream(tmp_path).category_frequencies() == {2: 0.75, 5: 0.25}
    assert stream(tmp_path / "nowhere").category_frequencies() == {}
