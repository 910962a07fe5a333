"""A quick stand-in for the diffusion model: one filled rectangle a region. All around it is the real code."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mflight.data.categories import Categories
from mflight.functional.masks import rle_encode
from mflight.synthesis.generator_settings import GeneratorSettings
from mflight.synthesis.pool.packing import PoolSample

CATEGORIES = [
    {"id": 2, "name": "sea_horse", "def": "a small fish", "image_count": 3},
    {"id": 5, "name": "cup", "def": "a small open container", "image_count": 200},
    {"id": 9, "name": "bolt", "def": "a screw", "image_count": 7},
    {"id": 11, "name": "kite", "def": "a toy that flies", "image_count": 40},
]

PLANNER = {
    "_target_": "mflight.synthesis.planner.CategoryPlanner",
    "categories": {"_target_": "mflight.data.categories.Categories.from_lvis", "entries": CATEGORIES},
    "prompt_builder": {
        "_target_": "mflight.synthesis.prompts.PromptBuilder",
        "templates": ["a photo of a single {name}, {definition}"],
    },
    "region_hw": [32, 32],
    "overlap_hw": [8, 8],
    "stride_px": 4,
    "seed": 7,
}

SYNTHESIZER = {"_target_": "tests.unit.synthesis.squares.SquareSynthesizer", "device": "auto"}


def generator_settings(folder: Path, synthesizer: Any = (), **settings: Any) -> GeneratorSettings:
    """Settings of generators that draw squares, and are started again at once."""
    synthesizer = {**SYNTHESIZER, **dict(synthesizer)}
    return GeneratorSettings(
        pool_dir=folder, planner=PLANNER, synthesizer=synthesizer, **{"backoff_s": 0.0, **settings}
    )


def categories() -> Categories:
    return Categories.from_lvis(CATEGORIES)


def make_sample(index: int = 0, size_px: int = 32, category_id: int = 2) -> PoolSample:
    """One sample with one rectangle, all of it a function of the index."""
    draws = np.random.default_rng(index)
    image = draws.integers(0, 255, (size_px, size_px, 3), dtype=np.uint8)
    mask = np.zeros((size_px, size_px), bool)
    mask[4:20, 6 : 10 + index % 8] = True
    annotation = {
        "category_id": category_id,
        "region": 0,
        "bbox": [6, 4, 4 + index % 8, 16],
        "area": float(mask.sum()),
        "segmentation": rle_encode(mask),
    }
    region = {"category_id": category_id, "box": [0, 0, size_px, size_px], "rejected": None}
    return PoolSample(f"7-{index:08d}", image, [annotation], [region], {"index": index})


@dataclass
class SquareResult:
    request: Any
    regions: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    image: np.ndarray
    seconds: dict[str, float]

    def sample(self) -> PoolSample | None:
        if not self.annotations:
            return None
        provenance = self.request.to_dict()
        return PoolSample(self.request.request_id, self.image, self.annotations, self.regions, provenance)


class SquareSynthesizer:
    """Rejects region 0 of every request, and every region of each ``drop_every``-th one.

    ``crash_at`` kills the process once, in the middle of that request (a file remembers it); ``error_at``
    raises always; ``max_batch`` is the device memory; from request ``hold_from`` on it waits for
    ``hold_file``.
    """

    def __init__(
        self,
        device: str,
        seconds: float = 0.0,
        drop_every: int = 4,
        crash_at: int | None = None,
        crash_file: str = "",
        error_at: int | None = None,
        error_number: int = 0,
        max_batch: int = 1000,
        hold_from: int | None = None,
        hold_file: str = "",
    ):
        assert device != "auto"
        self.seconds, self.drop_every, self.max_batch = seconds, drop_every, max_batch
        self.crash_at, self.crash_file = crash_at, crash_file
        self.error_at, self.error_number = error_at, error_number
        self.hold_from, self.hold_file = hold_from, hold_file

    def synthesize(self, requests: list[Any]) -> list[SquareResult]:
        if len(requests) > self.max_batch:
            import torch

            raise torch.OutOfMemoryError(f"{len(requests)} requests do not fit")
        return [self._draw(request) for request in requests]

    def _draw(self, request: Any) -> SquareResult:
        time.sleep(self.seconds)
        while self.hold_from is not None and request.index >= self.hold_from:
            if Path(self.hold_file).exists():
                break
            time.sleep(0.05)
        if request.index == self.crash_at and not Path(self.crash_file).exists():
            Path(self.crash_file).touch()
            os.kill(os.getpid(), 9)
        if request.index == self.error_at:
            if self.error_number:
                raise OSError(self.error_number, os.strerror(self.error_number))
            raise ValueError(f"request {request.index} is cursed")
        canvas_hw = request.layout.canvas_hw
        image = np.full((*canvas_hw, 3), request.noise_seed % 256, np.uint8)
        regions, annotations = [], []
        for number, (box, category_id) in enumerate(
            zip(request.layout.region_boxes, request.category_ids, strict=True)
        ):
            x1, y1, x2, y2 = box
            is_bad = number == 0 or request.index % self.drop_every == self.drop_every - 1
            regions.append(
                {"category_id": category_id, "box": list(box), "rejected": "area" if is_bad else None}
            )
            if not is_bad:
                mask = np.zeros(canvas_hw, bool)
                mask[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] = True
                size = [x1 + 4, y1 + 4, x2 - x1 - 8, y2 - y1 - 8]
                annotations.append(
                    {
                        "category_id": category_id,
                        "region": number,
                        "bbox": size,
                        "area": float(mask.sum()),
                        "segmentation": rle_encode(mask),
                    }
                )
        return SquareResult(request, regions, annotations, image, {"denoise": self.seconds})
