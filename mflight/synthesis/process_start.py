"""What a new process is given on its way, and what one that died at once has left. No torch."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_TAIL_BYTES = 4000


def thread_settings(num_threads: int) -> dict[str, str]:
    """Environment that a process needs before torch is imported, so that two processes share the cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(num_threads))
    return {**threads, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def last_words(log: Path) -> str:
    """Return the last line of a log, an error's message if it ended by one, and where the rest stands."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    spoken = [line.strip() for line in lines if line.strip()]
    return f": {spoken[-1]}, see {log}" if spoken else f", see {log}"
