"""The dataset alone, in plain PyTorch: real drawing with the mini checkpoint, without Hydra or Lightning."""

import json

import torch

from mflight.minilvis.checkpoint import checkpoint_folder
from mflight.minilvis.species import SPECIES
from mflight.synthesis.mosaic_dataset import MosaicDataset

MINI_CANVAS = {"region_hw": [64, 64], "overlap_hw": [16, 16], "stride_px": 4}


def test_five_lines_draw_with_the_mini_checkpoint(tmp_path):
    names = [{"id": number, "name": one.name} for number, one in enumerate(SPECIES, start=1)]
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"images": [], "annotations": [], "categories": names}))
    dataset = MosaicDataset.from_checkpoint(
        checkpoint_folder(),
        annotation_file=classes,
        pool_dir=tmp_path / "pool",
        num_samples=2,
        planner=MINI_CANVAS,
        synthesizer={"num_inference_steps": 4},
    )
    samples = [(image, target) for image, target in dataset]
    assert len(samples) == 2
    for image, target in samples:
        num_instances, *size_hw = target["masks"].shape
        assert image.shape == (3, *size_hw) and image.dtype == torch.uint8 and image.float().std() > 10
        assert 1 <= num_instances <= 4 and target["labels"].max() <= len(names)
        assert (target["masks"].flatten(1).sum(1) == target["area"]).all()
    assert dataset.report.alive == 0 and dataset.messages == []
