"""Small JSON files by which trainer and generators tell each other where they stand. No torch.

Each has one author, is replaced in one piece, and may be missing or old: a reader goes on without it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file in one piece: a reader sees the old one or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(value))
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds, or None if it is missing or is not an object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def mark_generating(folder: Path, is_generating: bool) -> None:
    """Tell the training ranks that look after no generator whether samples may still come."""
    mark = folder / "generating.json"
    if is_generating:
        write_json(mark, {"pid": os.getpid()})
    else:
        mark.unlink(missing_ok=True)  # a full disk takes this as well


def is_generating(folder: Path) -> bool:
    """Return whether the rank that looks after the generators still expects samples."""
    return (folder / "generating.json").exists()


@dataclass
class WorkerStatus:
    """Where one generator worker stands; counts go on over its restarts, seconds too.

    Attributes:
        writer: name of the worker's series in the pool.
        pid: of the process that wrote it.
        state: ``loading``, ``drawing``, ``paused`` (at the high-water mark), ``full`` (the pool's bound),
            ``done``, ``stopped``, ``disk_full`` or ``failed``.
        message: a sentence on the state, where one is needed.
        requests: requests answered.
        accepted: canvases in the pool.
        dropped: canvases that no region survived.
        regions: regions drawn.
        rejected: regions rejected, by rule.
        size_bytes: bytes of the series.
        stage_s: seconds by stage of synthesis.
        busy_s: seconds of drawing and writing.
        idle_s: seconds of pausing.
        batch_size: requests drawn at once.
    """

    writer: str
    pid: int = 0
    state: str = "loading"
    message: str = ""
    requests: int = 0
    accepted: int = 0
    dropped: int = 0
    regions: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    busy_s: float = 0.0
    idle_s: float = 0.0
    batch_size: int = 0

    def take_counts(self, counts: Any) -> None:
        """Take over what the writer's series holds, from its ``SeriesCounts``."""
        self.accepted, self.dropped = counts.samples, counts.dropped
        self.requests, self.regions = counts.samples + counts.dropped, counts.regions
        self.rejected, self.size_bytes = dict(counts.rejected), counts.size_bytes

    def write(self, folder: Path) -> None:
        """Publish it as ``status-<writer>.json`` in the pool folder."""
        write_json(folder / f"status-{self.writer}.json", asdict(self))

    @classmethod
    def read(cls, folder: Path, writer: str) -> "WorkerStatus":
        """Return the status that a writer has last published, or an empty one."""
        said = read_json(folder / f"status-{writer}.json") or {}
        names = {known.name for known in fields(cls)} - {"writer"}
        return cls(writer=writer, **{name: value for name, value in said.items() if name in names})
