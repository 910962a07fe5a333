import pytest
import torch
from torch._dynamo.utils import counters

from mflight.diffusion.mosaic import denoise_mosaic
from mflight.diffusion.pipeline import load_pipeline
from tests.unit.diffusion.test_mosaic import assert_same, canvas


@pytest.fixture
def fresh_compiler():
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


def test_compiled_blocks_record_the_same_attention(tiny_checkpoint, tiny_pipeline, fresh_compiler):
    compiled = load_pipeline(str(tiny_checkpoint), compile_backend="eager")
    canvases = [canvas(1, num_regions=1)]
    (expected,) = denoise_mosaic(tiny_pipeline, canvases, num_inference_steps=2)
    (actual,) = denoise_mosaic(compiled, canvases, num_inference_steps=2)
    assert_same(actual, expected)
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs > 0
    denoise_mosaic(compiled, canvases, num_inference_steps=2)  # another recorder, the same shape
    assert counters["stats"]["unique_graphs"] == num_graphs


def test_compiler_that_torch_does_not_have_is_refused(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"one of torch's .*'inductor'.*, got 'gcc'"):
        load_pipeline(str(tiny_checkpoint), compile_backend="gcc")
