"""Benchmarks at the smallest sizes: they run, and their figures are complete and sound."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.diffusion.tiny_checkpoint import save_tiny_checkpoint

ROOT = Path(__file__).parents[2]
FIGURES = {
    "speedup_same_steps",
    "speedup_default",
    "mosaics_per_s",
    "bilateral_speedup",
    "peak_gb",
    "published_unet_over_stock",
}
FACTS = {"commit", "hardware", "torch", "device", "threads", "steps", "default_steps", "mosaics", "repeats"}


def run_benchmark(script, options):
    """Run a script of benchmarks/ and return what its last line tells."""
    command = [sys.executable, f"benchmarks/{script}", *options.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, _, text = done.stdout.splitlines()[-1].partition(" ")
    assert label == "RESULT"
    return json.loads(text)


@pytest.mark.slow
def test_synthesis_benchmark_ends_with_its_figures(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "sd")
    options = "--steps 2 --default-steps 3 --mosaics 1 --repeats 1"
    result = run_benchmark("synthesis.py", f"--checkpoint {checkpoint} {options}")
    assert result.keys() >= FIGURES | FACTS | {"capture_overhead"}
    assert all(result[key] > 0 for key in FIGURES)
    assert -1 < result["capture_overhead"] < 10
    assert 0.5 < result["published_unet_over_stock"] < 2
    assert result["published_peak_gb"] > 0.1 and result["peak_gb"] > 0.1  # each arm's own process
    assert (result["steps"], result["default_steps"]) == (2, 3)
    assert result["latents_difference"] < 1e-4 and result["mask_iou_mean"] > 0.95


@pytest.mark.slow
def test_evaluation_benchmark_finds_the_same_figures_with_both_evaluators():
    result = run_benchmark("evaluation.py", "--images 4 --workers 1")
    assert result.keys() == {"speedup", "max_abs_difference", "peak_gb"}
    assert 0 <= result["max_abs_difference"] < 1e-6
    assert result["speedup"] > 0 and result["peak_gb"] > 0


@pytest.mark.slow
def test_dataloader_benchmark_reads_with_both_loaders():
    result = run_benchmark("dataloader.py", "--images 400 --files 2 --batches 1 --batch-size 1 --workers 0")
    assert (result["images"], result["batches"], result["batch_size"], result["workers"]) == (400, 1, 1, 0)
    for setting in ("multi_scale", "lsj", "copy_paste"):
        for figure in ("images_per_s", "plain_images_per_s", "ratio"):
            assert result[f"{setting}_{figure}"] > 0
    assert result["ratio"] == result["copy_paste_ratio"]


def test_background_benchmark_finds_fragments_and_plain_places():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import background

    objects, masks = np.zeros((64, 64), dtype=bool), torch.zeros(1, 64, 64, dtype=torch.uint8)
    objects[8:32, 8:48] = masks[0, 8:32, 8:24] = True  # half of an object has no label
    objects[56:60, 56:60] = True  # too small to count
    torn = background.fragments(objects, masks)
    assert torn.tolist() == [[27, 8, 48, 32]]  # 3 px from the mask on
    plain = background.plain_background(objects, torn, np.random.default_rng(0))
    ((x1, y1, x2, y2),) = plain.astype(int).tolist()
    assert (x2 - x1, y2 - y1) == (21, 24) and objects[y1:y2, x1:x2].mean() < 0.02
    everything = np.ones((64, 64), dtype=bool)
    assert len(background.plain_background(everything, torn, np.random.default_rng(0))) == 0
