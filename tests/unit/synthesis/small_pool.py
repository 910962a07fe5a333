"""A pool of drawn rectangles with the provenance of real requests; each fourth canvas is dropped."""

import dataclasses
from pathlib import Path

from hydra.utils import instantiate

from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.squares import PLANNER, SquareSynthesizer


def fill_pool(folder: Path, num_requests: int, **settings) -> Path:
    planner = instantiate(PLANNER, _convert_="all")
    synthesizer = SquareSynthesizer("cpu")
    with PoolWriter(folder, "w0", **settings) as writer:
        for index in range(num_requests):
            (result,) = synthesizer.synthesize([planner.request(index)])
            sample = result.sample()
            if sample is None:
                writer.drop(result.request.request_id, result.regions, index=index)
            else:
                provenance = {"request": result.request.to_dict(), "checkpoint": "models/squares"}
                writer.append(dataclasses.replace(sample, provenance=provenance), index=index)
    return folder
