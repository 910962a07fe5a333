"""Choose the precision of a model's weights."""

import torch


def choose_dtype(dtype: torch.dtype | str, device: torch.device | str) -> torch.dtype:
    """Return the type of torch that is meant.

    Args:
        dtype: a floating-point type, its name (``"float16"``), or ``"auto"``: bfloat16 on a device with
            units for it (NVIDIA from compute capability 8.0 on; CPUs with AMX or AVX512-BF16), float32 on any
            other.
        device: where the weights will be.

    Returns:
        The type.

    Raises:
        ValueError: if ``dtype`` is not a floating-point type.
    """
    if dtype == "auto":
        return torch.bfloat16 if _has_bfloat16_units(torch.device(device)) else torch.float32
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ValueError(f"dtype must be 'auto' or name a floating-point type of torch, got {dtype!r}")
    return chosen


def _has_bfloat16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        units = torch.cpu.get_capabilities()
        return bool(units.get("amx_bf16") or units.get("avx512_bf16"))
    return False
