import inspect

import pytest

from mflight.data.share import SyntheticShare
from mflight.data.transforms import TrainTransform
from mflight.minilvis.dataset import MiniLVISSize, build_minilvis
from mflight.synthesis.mosaic_dataset import MosaicDataset
from mflight.training.datamodule import MixedDataModule
from mflight.training.real_images import RealImages

TINY = MiniLVISSize(train_images={"rare": (1, 1), "common": (2, 2), "frequent": (3, 3)}, val_instances=1)
SHARE = ("mixing", "batch_size", "synthetic_ratio", "warmup_steps", "cooldown_ratio")

REAL = tuple(inspect.signature(RealImages).parameters)
SYNTHETIC = ("stream", "generator", "poll_s")


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory):
    return build_minilvis(tmp_path_factory.mktemp("training") / "world", size=TINY)


@pytest.fixture
def build_datamodule(tiny_world):
    def build(**settings):
        files = {
            "train_annotations": tiny_world / "train.json",
            "train_images": tiny_world,
            "val_annotations": tiny_world / "val.json",
            "val_images": tiny_world,
            "train_transform": TrainTransform(
                jitter_range=(0.8, 1.25), crop_hw=(64, 64), flip_probability=0.5
            ),
        }
        real = RealImages(**files | {name: settings.pop(name) for name in REAL if name in settings})
        synthetic = {name: settings.pop(name) for name in SYNTHETIC if name in settings}
        if synthetic:
            synthetic = MosaicDataset(annotation_file=real.train_annotations, **synthetic)
        share = {name: settings.pop(name) for name in SHARE if name in settings}
        share = SyntheticShare(**{"mixing": "replace", "batch_size": 2, **share})
        loading = {"val_batch_size": 2, "epoch_steps": 3, "num_workers": 0, **settings}
        return MixedDataModule(real=real, synthetic=synthetic or None, share=share, **loading)

    return build
