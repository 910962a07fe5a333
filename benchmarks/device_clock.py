"""Time, memory and arithmetic rate of a device, and the facts that belong beside every figure."""

import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evaluation import reset_peak_gb, status_gb

ROOT = Path(__file__).resolve().parents[1]


class DeviceClock:
    """Times what is done on a device, until the device is done.

    Args:
        device: torch's name of it.
        cpu_time: count this process's CPU seconds instead of wall time: for one thread on a busy machine.
    """

    def __init__(self, device: str, cpu_time: bool = False):
        self.on_gpu = torch.device(device).type == "cuda"
        self._now = time.process_time if cpu_time and not self.on_gpu else time.perf_counter

    def timed(self, function: Callable[[], Any]) -> tuple[float, Any]:
        """Return seconds and value of a call."""
        self._synchronize()
        start_s = self._now()
        value = function()
        self._synchronize()
        return self._now() - start_s, value

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats() if self.on_gpu else reset_peak_gb()

    def peak_gb(self) -> float:
        """Return the peak since the reset, in GiB: of the GPU's memory, or of this process's on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else status_gb("VmHWM")

    def _synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


class UNetClock:
    """Seconds that a UNet takes in a ``with`` block, and the shapes that it was given."""

    def __init__(self, unet: torch.nn.Module):
        self._unet, self._on_gpu = unet, unet.device.type == "cuda"
        self._marks: list[Any] = []
        self.shapes: list[tuple[int, ...]] = []
        self.wall_s = 0.0

    def __enter__(self):
        self._start_s = time.perf_counter()
        self._hooks = [
            self._unet.register_forward_pre_hook(self._before),
            self._unet.register_forward_hook(lambda *_: self._mark()),
        ]
        return self

    def __exit__(self, *_):
        if self._on_gpu:
            torch.cuda.synchronize()
        self.wall_s = time.perf_counter() - self._start_s
        for hook in self._hooks:
            hook.remove()

    @property
    def seconds(self) -> float:
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        if not self._on_gpu:
            return sum(end - start for start, end in pairs)
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3

    def _before(self, _, arguments):
        self.shapes.append(tuple(arguments[0].shape))
        self._mark()

    def _mark(self):
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)


def matmul_rate(device: str, dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """Return the FLOP/s of a square matrix product, best of ten."""
    clock = DeviceClock(device)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(clock.timed(lambda: left @ right)[0] for _ in range(10))


def facts(device: str) -> dict[str, Any]:
    """Return commit, hardware and versions."""
    return {
        "commit": _git("describe", "--always", "--dirty") or "unknown",
        "hardware": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else _cpu_name(),
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()
