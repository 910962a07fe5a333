"""The benchmark of the generator at the smallest sizes: it runs, and its figures are complete and sound."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_synthesis_benchmark_ends_with_its_figures(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "sd")
    options = "--steps 2 --default-steps 3 --mosaics 1 --repeats 1".split()
    command = [sys.executable, "benchmarks/synthesis.py", "--checkpoint", str(checkpoint), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, _, text = done.stdout.splitlines()[-1].partition(" ")
    result = json.loads(text)
    assert label == "RESULT" and result.keys() >= FIGURES | FACTS | {"capture_overhead"}
    assert all(result[key] > 0 for key in FIGURES)
    assert -1 < result["capture_overhead"] < 10
    assert (result["steps"], result["default_steps"]) == (2, 3)
    assert result["latents_difference"] < 1e-4 and result["mask_iou_mean"] > 0.95
