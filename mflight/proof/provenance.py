"""What a run is made with: the commit, the cores and GPUs of this machine."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from mflight.training.machine_share import all_gpus


def all_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return all_gpus() if named is None else [each for each in named.split(",") if each]


def commit() -> str:
    """Return the commit of this checkout, marked where files differ from it, else the package's version."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed, perhaps below somebody's own repository
        return version("mflight")
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip() if told.returncode == 0 else version("mflight")


def hardware() -> str:
    """Return the number and names of the cores and GPUs that this process may use."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpus = visible_gpus()
    words = f"{len(all_cores())} cores of {cpu}"
    return f"{words}, {len(gpus)} GPUs: {_gpu_names()}" if gpus else words


def _gpu_names() -> str:
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return ", ".join(dict.fromkeys(line.strip() for line in told.stdout.splitlines()))
