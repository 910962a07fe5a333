"""The choice of a precision, on devices that are pretended to be there."""

import pytest
import torch

from mflight.diffusion.parts import choose_dtype


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16), ((12, 0), torch.bfloat16)],
)
def test_auto_on_a_gpu_follows_the_capability_of_that_gpu(monkeypatch, capability, expected):
    capabilities = {torch.device("cuda:1"): capability}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert choose_dtype("auto", "cuda:1") == expected


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_tile": True, "amx_bf16": True}, torch.bfloat16),
        ({"amx_tile": True, "amx_bf16": False, "avx512_bf16": False}, torch.float32),
    ],
)
def test_auto_on_a_cpu_follows_its_units(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert choose_dtype("auto", "cpu") == expected
    assert choose_dtype("float32", "cpu") == torch.float32  # a precision that is named stays


def test_auto_on_another_device_is_float32():
    assert choose_dtype("auto", "mps") == torch.float32


@pytest.mark.parametrize("wrong", ["int8", "half precision", "nn", torch.int64])
def test_what_is_no_floating_point_type_is_refused(wrong):
    with pytest.raises(ValueError, match="'auto' or name a floating-point type of torch, got"):
        choose_dtype(wrong, "cpu")
