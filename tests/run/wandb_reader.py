"""Reads what an offline wandb run holds: a LevelDB log of protobuf records behind a header of 7 bytes."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_HEADER_BYTES, _BLOCK_BYTES, _CHUNK_HEADER = 7, 32768, struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class WandbRun:
    """``history`` is a list of rows by key; ``config`` and ``summary`` hold the last value of each key.

    ``name``, ``group``, ``sweep_id`` and ``run_id`` are ``None`` where the run has none.
    ``alerts`` holds level and text of each alert.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    group: str | None = None
    sweep_id: str | None = None
    run_id: str | None = None
    alerts: list[tuple[str, str]] = field(default_factory=list)

    def values(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]

    @property
    def keys(self) -> set[str]:
        return {key for row in self.history for key in row}


def read_wandb_run(run_dir: Path) -> WandbRun:
    """Read the only wandb run of a run folder."""
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    run = WandbRun()
    for data in _records(file.read_bytes()):
        record = Record.FromString(data)
        run.config |= _items(record.config.update) | _items(record.run.config.update)
        run.summary |= _items(record.summary.update)
        run.name = record.run.display_name or run.name
        run.group = record.run.run_group or run.group
        run.sweep_id = record.run.sweep_id or run.sweep_id
        run.run_id = record.run.run_id or run.run_id
        if record.HasField("alert"):
            run.alerts.append((record.alert.level, record.alert.text))
        if record.history.item:
            run.history.append(_items(record.history.item))
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    place, parts = _HEADER_BYTES, []
    while place + _CHUNK_HEADER.size <= len(data):
        left = _BLOCK_BYTES - place % _BLOCK_BYTES
        if left < _CHUNK_HEADER.size:  # padding at the end of a block
            place += left
            continue
        _, length, kind = _CHUNK_HEADER.unpack_from(data, place)
        place += _CHUNK_HEADER.size
        parts = [*(parts if kind in (_MIDDLE, _LAST) else []), data[place : place + length]]
        place += length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
