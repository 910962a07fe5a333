"""The way of the demand: a real detector trains, a pool takes the demand, a checkpoint keeps it."""

import csv
import functools
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from mflight.detection.backbones import MiniFPN
from mflight.detection.mask_rcnn import build_mask_rcnn
from mflight.synthesis.demand import ClassSignals, DemandRule
from mflight.synthesis.pool.folder import PoolWriter
from mflight.synthesis.pool.signals import Demand
from mflight.synthesis.stream import PoolStream
from mflight.training.callbacks.demand_feedback import DemandFeedback, class_aps, demand_figures
from mflight.training.segmentation import InstanceSegmentationModule
from tests.unit.synthesis.squares import categories, make_sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Shapes(L.LightningDataModule):
    """Four batches of one image with a square of class 1 and one of class 2."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(4), batch_size=1, collate_fn=_draw)


def _draw(indices):
    image, masks = torch.zeros(3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 4:28, 4:28] = masks[1, 36:60, 36:60] = 1
    image[:2] = masks
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 28.0, 28.0], [36.0, 36.0, 60.0, 60.0]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
        "image_id": indices[0],
    }
    return [image], [target]


def build_module():
    torch.manual_seed(0)
    detector = build_mask_rcnn(
        backbone=MiniFPN(stage_channels=(16, 16, 16, 16), out_channels=16),
        num_classes=4,
        min_size=None,
        anchor_sizes_px=((12,), (24,), (48,), (96,)),
        rpn_post_nms_top_n_train=20,
        box_head_channels=16,
        mask_head_channels=(8,),
    )
    return InstanceSegmentationModule(model=detector, optimizer=functools.partial(torch.optim.SGD, lr=1e-3))


def fit(folder, pool, max_steps, *, resume_from=None, **settings):
    module, feedback = build_module(), DemandFeedback(rule=DemandRule(), every_n_steps=2)
    trainer = L.Trainer(
        max_steps=max_steps, accelerator="cpu", default_root_dir=folder, callbacks=[feedback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    stream = PoolStream(pool_dir=pool, categories=categories(), poll_interval_s=0.0)
    stream.next_ref()
    trainer.fit(module, datamodule=Shapes(stream), ckpt_path=resume_from)
    return module, feedback, trainer


@pytest.fixture
def pool(tmp_path):
    with PoolWriter(tmp_path / "pool", "w0") as writer:
        for index in range(3):
            writer.append(make_sample(index, category_id=9), index=index)
        for index in range(3, 30):
            writer.drop(f"7-{index:08d}", [{"category_id": 11, "rejected": "too_small"}], index=index)
    return tmp_path / "pool"


def test_loss_ap_and_acceptance_come_into_the_demand(tmp_path, pool):
    module, feedback, trainer = fit(tmp_path, pool, 4)
    assert module.model.roi_heads.watchers == []
    by_loss = Demand.read(pool)
    assert by_loss.step == 4 and sum(by_loss.weights.values()) == pytest.approx(1)
    means = feedback._losses.means()
    assert set(means) == {1, 2}
    signals = {
        2: ClassSignals(3, means[1]),
        5: ClassSignals(200, means[2]),
        9: ClassSignals(7, None, None, 3, 3),
        11: ClassSignals(40, None, None, 27, 0),
    }
    assert by_loss.weights == pytest.approx(DemandRule().shares(signals))

    module.per_class = [{"category_id": 2, "segm/AP": 75.0}, {"category_id": 5, "segm/AP": -1.0}]
    feedback.on_validation_end(trainer, module)
    signals[2] = replace(signals[2], ap=0.75)
    assert Demand.read(pool).weights == pytest.approx(DemandRule().shares(signals))
    with (tmp_path / "demand.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["category_id"] for row in rows] == ["2", "5", "9", "11"]
    assert (rows[0]["AP"], rows[1]["AP"], rows[3]["drawn"], rows[3]["kept"]) == ("75.0", "", "27", "0")
    assert float(rows[0]["share"]) == pytest.approx(Demand.read(pool).weights[2])


def test_a_resumed_run_goes_on_with_what_was_known(tmp_path, pool):
    _, whole, _ = fit(tmp_path / "whole", pool, 4)
    _, stopped, trainer = fit(tmp_path / "stopped", pool, 3)  # in mid-interval
    stopped._aps = {2: 0.5}
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    _, resumed, _ = fit(tmp_path / "resumed", pool, 4, resume_from=tmp_path / "stopped.ckpt")
    assert resumed._aps == {2: 0.5}
    expected = whole._losses.state_dict()
    assert torch.allclose(resumed._losses.state_dict()["sums"], expected["sums"], rtol=1e-3)
    assert (
        torch.equal(resumed._losses.state_dict()["sums"][1], expected["sums"][1]) and expected["sums"][1, 1]
    )


def test_without_a_rule_or_a_pool_it_does_nothing(tmp_path, pool):
    trainer = SimpleNamespace(datamodule=SimpleNamespace(), global_step=0, sanity_checking=False)
    for feedback in (DemandFeedback(rule=None), DemandFeedback(rule=DemandRule())):
        feedback.on_train_start(trainer, build_module())
        feedback.on_train_batch_end(trainer, None, None, None, 0)
        feedback.on_validation_end(trainer, None)
        assert feedback.state_dict() == {}
    assert Demand.read(pool) is None


def test_groups_are_logged_not_classes():
    signals = {2: ClassSignals(3, 1.0, None, 4, 1), 9: ClassSignals(7, 3.0, None, 4, 2), 5: ClassSignals(200),
               11: ClassSignals(40)}  # fmt: skip
    shares = {2: 0.4, 9: 0.3, 5: 0.1, 11: 0.2}
    assert demand_figures(categories(), signals, shares) == {
        "synthesis/demand/rare": pytest.approx(0.7),
        "train/class_loss/rare": 2.0,
        "synthesis/acceptance/rare": 3 / 8,
        "synthesis/demand/common": 0.2,
        "synthesis/demand/frequent": 0.1,
    }


def test_ap_is_of_masks_where_there_are_masks():
    rows = [
        {"category_id": 2, "segm/AP": 40.0, "bbox/AP": 50.0},
        {"category_id": 5, "bbox/AP": 50.0},
        {"category_id": 9, "segm/AP": -1.0},
        {"category_id": 11},
    ]
    assert class_aps(rows) == {2: 0.4, 5: 0.5}
