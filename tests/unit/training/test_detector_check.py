"""The detector's word against a sample: by hand, and through a real detector, stream and checkpoint."""

import functools
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from mflight.detection.backbones import MiniFPN
from mflight.detection.mask_rcnn import build_mask_rcnn
from mflight.synthesis.pool.folder import PoolWriter
from mflight.synthesis.stream import PoolStream
from mflight.training.callbacks.detector_check import DetectorCheck, strongest_contradiction
from mflight.training.segmentation import InstanceSegmentationModule
from tests.unit.synthesis.squares import categories, make_sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 1, 0, 0], 0.5),  # 0.1 and 0.9 of class 2; the background does not count
        ([2, 2, 0, 0], 0.4),  # 0.7 and 0.1 of class 1
        ([1, 2, 0, 0], 0.1),
        ([2, 1, 0, 0], 0.9),  # the label that is spoken against most
        ([0, 0, 0, 0], 0.0),
    ],
)
def test_contradiction_by_hand(labels, expected):
    scores = torch.tensor([[0.7, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])
    assert strongest_contradiction(scores, torch.tensor(labels)).item() == pytest.approx(expected)


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


class FromPool(L.LightningDataModule):
    def __init__(self, pool):
        super().__init__()
        self.stream = PoolStream(pool_dir=pool, categories=categories(), poll_interval_s=0.0, order="oldest")

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(10), batch_size=1, collate_fn=self._draw)

    def _draw(self, _):
        image, target = self.stream.read(self.stream.next_ref())
        return [image / 255], [target]


def fit(pool, max_steps, min_score, resume_from=None):
    data, check = FromPool(pool), DetectorCheck(min_score=min_score, every_n_steps=3)
    trainer = L.Trainer(
        max_steps=max_steps, accelerator="cpu", callbacks=[check], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = build_module()
    trainer.fit(module, datamodule=data, ckpt_path=resume_from)
    assert module.model.roi_heads.watchers == []
    return data, trainer


def test_what_the_detector_takes_for_something_else_is_used_no_more_also_after_a_resume(tmp_path):
    with PoolWriter(tmp_path / "pool", "w0") as writer:
        for index in range(4):
            writer.append(make_sample(index), index=index)
    kept, _ = fit(tmp_path / "pool", 4, min_score=1.0)
    assert kept.stream.next_ref() is not None
    data, trainer = fit(
        tmp_path / "pool", 3, min_score=1e-6
    )  # an untrained detector gives each class a little
    left = data.stream.next_ref()
    assert left.sample_id == "7-00000003" and data.stream.next_ref().sample_id == left.sample_id
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data, _ = fit(tmp_path / "pool", 5, min_score=1e-6, resume_from=tmp_path / "last.ckpt")
    assert data.stream.num_used == 1  # the only one left, at both steps


def test_it_refuses_to_judge_images_with_real_instances_beside_generated_ones():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(pastes_instances=True))
    DetectorCheck(min_score=None).setup(trainer, None, "fit")
    with pytest.raises(ValueError, match=r"detector_check\.min_score=0\.9 must be null with synthesis/paste"):
        DetectorCheck(min_score=0.9).setup(trainer, None, "fit")
