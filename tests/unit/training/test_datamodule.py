import functools
import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from mflight.data.copy_paste import SimpleCopyPaste
from mflight.data.downscale import RandomDownscale
from mflight.data.instance_paste import InstancePaste
from mflight.data.lvis import LVISAnnotations
from mflight.data.samplers import ClassAwareSampler
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.stream import PoolStream
from tests.unit.synthesis.squares import generator_settings, make_sample
from tests.unit.training.foreign import ForeignModule, stock_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*on_before_batch_transfer.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*have no logger configured.*",
    "ignore:.*The dirpath has changed.*",
    "ignore:.*exists and is not empty.*",
    "ignore:.*__array__ implementation.*:DeprecationWarning",
)


def fit(folder, datamodule, max_steps, *, resume_from=None, **settings):
    torch.manual_seed(0)
    module, trainer = ForeignModule(**settings), stock_trainer(folder, max_steps=max_steps)
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from)
    return module, trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


def test_it_feeds_somebody_elses_module_under_a_stock_trainer(tmp_path, build_datamodule):
    datamodule = build_datamodule()
    module, trainer = fit(tmp_path, datamodule, 4)
    assert trainer.global_step == 4 and len(module.batches) == 4
    assert all(len(batch) == 2 for batch in module.batches)
    assert module.num_validated == len(datamodule.val_dataloader().dataset)  # once, after three steps
    assert module.num_transfers >= 4  # its own hook is called as well
    assert (datamodule.counts.real, datamodule.counts.synthetic_share) == (8, 0.0)


def test_batches_hold_images_and_targets_of_torchvision(build_datamodule):
    datamodule = build_datamodule()
    datamodule.prepare_data()
    datamodule.setup("fit")
    images, targets = next(iter(datamodule.train_dataloader()))
    for image, target in zip(images, targets, strict=True):
        assert image.shape[0] == 3 and max(image.shape[1:]) <= 64 and image.dtype == torch.float32
        assert 0.0 <= image.min() and image.max() <= 1.0
        assert target["masks"].shape == (len(target["labels"]), *image.shape[1:])
        assert target["labels"].min() >= 1 and target["labels"].max() <= len(datamodule.categories)


@pytest.mark.parametrize("stopped_at", [2, 3, 4], ids=["in mid-epoch", "at the epoch's end", "in the second"])
def test_a_resumed_run_sees_the_batches_that_were_left(tmp_path, whole, build_datamodule, stopped_at):
    module, trainer = fit(whole, build_datamodule(), 5)
    checkpoint = whole / f"step={stopped_at}.ckpt"
    resumed, resumed_trainer = fit(tmp_path, build_datamodule(), 5, resume_from=checkpoint)
    assert resumed_trainer.global_step == trainer.global_step == 5
    assert resumed.batches == module.batches[stopped_at:]
    assert resumed_trainer.datamodule.counts == trainer.datamodule.counts
    torch.testing.assert_close(resumed.layer.weight, module.layer.weight, rtol=0, atol=0)


def test_a_finished_run_can_be_trained_on(tmp_path, build_datamodule):
    fit(tmp_path, build_datamodule(), 2)
    resumed, trainer = fit(tmp_path / "more", build_datamodule(), 5, resume_from=tmp_path / "step=2.ckpt")
    assert trainer.global_step == 5 and len(resumed.batches) == 3


def test_a_finished_run_is_not_trained_again(tmp_path, build_datamodule):
    fit(tmp_path, build_datamodule(), 2)
    resumed, trainer = fit(tmp_path / "more", build_datamodule(), 2, resume_from=tmp_path / "step=2.ckpt")
    assert trainer.global_step == 2 and resumed.batches == []


def test_a_state_of_other_ranks_is_refused(build_datamodule):
    datamodule = build_datamodule()
    datamodule.setup("fit")
    state = datamodule.train_dataloader().state_dict()
    with pytest.raises(ValueError, match="2 training ranks must be resumed with as many, got 1"):
        datamodule.train_dataloader().load_state_dict({"ranks": state["ranks"] * 2})


def test_validation_alone_opens_no_training_data(tmp_path, build_datamodule):
    datamodule = build_datamodule(train_annotations=tmp_path / "train.json", prepare=lambda: None)
    module = ForeignModule()
    stock_trainer(tmp_path).validate(module, datamodule=datamodule, verbose=False)
    assert module.num_validated == len(datamodule.val_dataloader().dataset)


def test_validation_leaves_the_global_random_state_alone(build_datamodule):
    datamodule = build_datamodule()
    before = torch.get_rng_state()
    next(iter(datamodule.val_dataloader()))
    assert torch.equal(before, torch.get_rng_state())


def test_missing_files_are_named_with_their_keys_and_their_source(tmp_path, build_datamodule):
    datamodule = build_datamodule(train_annotations=tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match=r"data\.train_annotations=.*nowhere\.json.*lvisdataset\.org"):
        datamodule.prepare_data()


def test_a_share_without_a_source_is_refused(build_datamodule):
    with pytest.raises(ValueError, match=r"synthesis\.synthetic_ratio=0\.3 needs a source"):
        build_datamodule(synthetic_ratio=0.3)


def test_synthetic_images_are_made_smaller_and_real_ones_are_not(tmp_path, build_datamodule):
    with PoolWriter(tmp_path, "w0") as writer:
        for index in range(4):
            writer.append(make_sample(index, size_px=64), index=index)
    datamodule = build_datamodule(
        synthetic_ratio=0.5,
        stream=functools.partial(PoolStream, pool_dir=tmp_path),
        downscale=RandomDownscale(scale_range=(0.25, 0.25)),
    )
    datamodule.setup("fit")
    sides = {True: [], False: []}
    for images, targets in datamodule.train_dataloader():
        for image, target in zip(images, targets, strict=True):
            sides[target["is_synthetic"]].append(max(image.shape[1:]))
    assert len(sides[True]) == len(sides[False]) == 3
    assert max(sides[True]) <= 16 < 48 < min(sides[False])  # they are cut to 64 px before


def test_two_replays_of_a_pool_with_one_seed_are_equal(tmp_path, build_datamodule):
    with PoolWriter(tmp_path / "pool", "w0") as writer:
        for index in range(3):
            writer.append(make_sample(index, size_px=64), index=index)

    def replay(name, seed):
        datamodule = build_datamodule(
            synthetic_ratio=0.5,
            stream=functools.partial(PoolStream, pool_dir=tmp_path / "pool", max_reuse=2, seed=seed),
            seed=seed,
        )
        module, _ = fit(tmp_path / name, datamodule, 7)
        assert (datamodule.counts.fresh, datamodule.counts.reused, datamodule.counts.fallback) == (3, 3, 1)
        return module

    first, second, other = replay("first", 4), replay("second", 4), replay("other", 5)
    assert first.batches == second.batches != other.batches
    torch.testing.assert_close(first.layer.weight, second.layer.weight, rtol=0, atol=0)


def test_the_generators_stop_when_training_fails(tmp_path, build_datamodule):
    pool = tmp_path / "pool"
    datamodule = build_datamodule(
        synthetic_ratio=0.5,
        stream=functools.partial(PoolStream, pool_dir=pool),
        generator=generator_settings(pool, stop_timeout_s=0.0),
    )
    with pytest.raises(RuntimeError, match="fails at step 1"):
        fit(tmp_path, datamodule, 3, fail_at_step=1)
    assert Path(pool).is_dir()
    assert multiprocessing.active_children() == []
    assert datamodule.synthetic.report.num_deaths == 0


def test_synthetic_instances_are_pasted_onto_real_images(tmp_path, build_datamodule):
    with PoolWriter(tmp_path, "w0") as writer:
        for index in range(4):
            writer.append(make_sample(index, category_id=3), index=index)
    settings = {"synthetic_ratio": 0.5, "stream": functools.partial(PoolStream, pool_dir=tmp_path)}
    seen = []
    for paste in (None, functools.partial(InstancePaste, min_area_px=1), functools.partial(InstancePaste)):
        datamodule = build_datamodule(**settings, paste=paste, copy_paste=SimpleCopyPaste())
        datamodule.setup("fit")
        seen.append([t for _, targets in datamodule.train_dataloader() for t in targets if t["is_synthetic"]])
        assert (datamodule.counts.fresh, datamodule.counts.real) == (3, 3)
    whole, pasted, again = seen
    names = ["7-00000000", "7-00000001", "7-00000002"]
    assert [t["sample_id"] for t in whole] == [t["sample_id"] for t in pasted] == names
    assert all(t["image_id"] < 0 for t in whole) and all(t["image_id"] > 0 for t in pasted)
    assert all(t["labels"][-1] == 3 for t in pasted)  # the real instances come before
    assert [t["image_id"] for t in pasted] == [t["image_id"] for t in again]


def test_classes_can_come_in_turn(tiny_world, build_datamodule):
    datamodule = build_datamodule(sampling="class_aware", seed=3)
    datamodule.setup("fit")
    train = LVISAnnotations(tiny_world / "train.json")
    image_categories = [train.image_category_ids(index) for index in range(len(train))]
    order = ClassAwareSampler(image_categories=image_categories, seed=3).epoch_indices(0)
    images = [target["image_id"] for _, targets in datamodule.train_dataloader() for target in targets]
    assert images == train.image_ids[order][:6].tolist()


def test_a_scale_that_pasting_would_not_use_is_refused(build_datamodule):
    with pytest.raises(ValueError, match=r"synthesis\.scale_range=\(0\.5, 1\.0\) must be \(1, 1\)"):
        build_datamodule(paste=InstancePaste, downscale=RandomDownscale(scale_range=(0.5, 1.0)))


def test_files_with_other_classes_are_refused(tmp_path, tiny_world, build_datamodule):
    with pytest.raises(ValueError, match=r"data\.num_classes must be the 24 of .*train\.json, got 23"):
        build_datamodule(num_classes=23).setup("fit")
    content = json.loads((tiny_world / "val.json").read_text())
    content["categories"].append({"id": 99, "name": "stranger"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    datamodule = build_datamodule(val_annotations=tmp_path / "val.json")
    for stage in ("fit", "validate"):
        with pytest.raises(
            ValueError, match=r"must list the same category ids, \[99\] are in one of them only"
        ):
            datamodule.setup(stage)
