import pytest
import torch
from torch._dynamo.utils import counters

from mflight.diffusion.mosaic import denoise_mosaic
from mflight.diffusion.pipeline import load_pipeline
from mflight.functional.layout import MosaicLayout
from tests.unit.diffusion.test_mosaic import assert_same, canvas


@pytest.fixture
def fresh_compiler():
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


def one_region(seed, region_hw):
    """A canvas of one region, as a jittered centre makes it."""
    layout = MosaicLayout(region_hw, ((0, 0, *region_hw[::-1]),), (32, 32))
    return canvas(seed, num_regions=1, layout=layout)


def test_compiled_blocks_record_the_same_and_are_reused(tiny_checkpoint, tiny_pipeline, fresh_compiler):
    """A graph is made for the first shape; those made for the second take any other of a bounded set."""
    compiled = load_pipeline(str(tiny_checkpoint), compile_backend="eager")
    num_graphs = []
    for seed, region_hw in enumerate([(32, 32), (32, 32), (40, 48), (48, 32), (24, 40), (32, 32)]):
        one = one_region(seed, region_hw)
        (expected,) = denoise_mosaic(tiny_pipeline, [one], num_inference_steps=2)
        (actual,) = denoise_mosaic(compiled, [one], num_inference_steps=2)
        assert_same(actual, expected)
        num_graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < num_graphs[0] == num_graphs[1]  # another recorder, the same shape
    assert num_graphs[1] < num_graphs[2] <= 2 * num_graphs[0]
    assert num_graphs[3:] == [num_graphs[2]] * 3


def test_compiler_that_torch_does_not_have_is_refused(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"one of torch's .*'inductor'.*, got 'gcc'"):
        load_pipeline(str(tiny_checkpoint), compile_backend="gcc")
