"""The detector's word on synthetic instances, through a real training, stream and pool."""

import functools
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from mflight.detection.backbones import MiniFPN
from mflight.detection.mask_rcnn import build_mask_rcnn
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.stream import PoolStream
from mflight.training.callbacks.detector_check import DetectorCheck
from mflight.training.segmentation import InstanceSegmentationModule
from tests.unit.detection.test_centernet2 import build_tiny
from tests.unit.synthesis.squares import categories, make_sample
from tests.unit.training.foreign import ForeignModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


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
        self.stream = PoolStream(pool_dir=pool, categories=categories(), poll_interval_s=0.0)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(10), batch_size=1, collate_fn=self._draw)

    def _draw(self, _):
        image, target = self.stream.read(self.stream.next_ref())
        return [image / 255], [target]


class Recorder(L.Callback):
    """Notes at the end of each step whether the detector was asked, and what was logged."""

    def __init__(self):
        self.is_asked, self.ratios = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        heads, network = pl_module.model.roi_heads, pl_module.model.rpn
        assert heads.verification is network.verification
        self.is_asked.append(heads.verification is not None)
        self.ratios.append(trainer.callback_metrics.get("synthesis/unconfirmed_ratio"))


def fit(pool, max_steps, resume_from=None, **settings):
    recorder, module = Recorder(), build_module()
    check = DetectorCheck(every_n_steps=2, **settings)
    trainer = L.Trainer(
        max_steps=max_steps, accelerator="cpu", callbacks=[check, recorder], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=FromPool(pool), ckpt_path=resume_from)
    assert module.model.roi_heads.verification is module.model.rpn.verification is None
    return recorder, trainer


@pytest.fixture
def pool(tmp_path):
    with PoolWriter(tmp_path / "pool", "w0") as writer:
        for index in range(4):
            writer.append(make_sample(index), index=index)
    return tmp_path / "pool"


def test_the_detector_is_asked_from_a_step_on_also_after_a_resume(tmp_path, pool):
    first, trainer = fit(pool, 3, min_score=1.0, from_step=2)
    assert first.is_asked == [False, False, True]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed, _ = fit(pool, 5, tmp_path / "last.ckpt", min_score=1.0, from_step=4)
    assert resumed.is_asked == [False, True]


def test_the_share_that_was_left_out_is_logged(pool):
    for min_score, expected in ((1.0, 1.0), (0.0, 0.0)):
        recorder, _ = fit(pool, 4, min_score=min_score, min_iou=0.0)
        assert recorder.ratios[1] == recorder.ratios[3] == expected
    late, _ = fit(pool, 4, min_score=1.0, from_step=2)
    assert late.ratios[1] is None and late.ratios[3] == 1.0
    off, _ = fit(pool, 2)
    assert off.is_asked == [False, False] and off.ratios == [None, None]


def test_it_refuses_what_it_cannot_judge():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(pastes_instances=True))
    DetectorCheck(min_score=None).setup(trainer, None, "fit")
    with pytest.raises(ValueError, match=r"detector_check\.min_score=0\.9 must be null with synthesis/paste"):
        DetectorCheck(min_score=0.9).setup(trainer, None, "fit")
    trainer = SimpleNamespace(datamodule=None)
    with pytest.raises(ValueError, match=r"min_score=0\.1 needs a detector of build_mask_rcnn, got Foreign"):
        DetectorCheck(min_score=0.1).setup(trainer, ForeignModule(), "fit")
    with pytest.raises(ValueError, match=r"needs a detector of build_mask_rcnn, got GeneralizedRCNN"):
        DetectorCheck(min_score=0.1).setup(trainer, torch.nn.ModuleDict({"model": build_tiny()}), "fit")
    with pytest.raises(ValueError, match=r"input_value=1\.5"):
        DetectorCheck(min_score=1.5)
