"""What the process that drives Ray generators is told, and what it tells the trainer. No torch, no Ray."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mflight.synthesis.pool.signals import read_json, write_json
from mflight.synthesis.worker import WorkerSpec


@dataclass(frozen=True)
class RayHomeSpec(WorkerSpec):
    """What the process at home needs: what a worker needs, and how to reach and keep the generators.

    Attributes:
        address: of the cluster, as ``ray.init`` takes it.
        num_generators: generators; None: one for each GPU of the cluster, or for each node without any.
        use_home_gpus: whether Ray may place generators on GPUs of this host.
        runtime_env: of the actors, as ``ray.init`` takes it.
        max_restarts: how often each generator is started again.
        backoff_s: wait before its first restart, in seconds.
        place_timeout_s: a generator that is not ready so long after its start counts as dead, in seconds.
        without_worker: what a message says of the time after a generator that is given up.
    """

    address: str = "auto"
    num_generators: int | None = None
    use_home_gpus: bool = False
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    max_restarts: int = 5
    backoff_s: float = 1.0
    place_timeout_s: float = 600.0
    without_worker: str = ""


@dataclass
class RayStatus:
    """What the process at home tells the trainer, in ``ray.json`` of the pool folder.

    Attributes:
        pid: of the process that wrote it.
        alive: generators that are ready.
        restarting: generators that are started, or wait for their start.
        given_up: generators that will not be started again.
        num_deaths: deaths so far, with those that earlier processes at home have seen.
        messages: what has happened, from the beginning of the run.
    """

    pid: int = 0
    alive: int = 0
    restarting: int = 0
    given_up: int = 0
    num_deaths: int = 0
    messages: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Publish it."""
        write_json(self.path(folder), asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "RayStatus":
        """Return what was last published, or an empty status."""
        said = read_json(cls.path(folder)) or {}
        names = {known.name for known in fields(cls)}
        return cls(**{name: value for name, value in said.items() if name in names})

    @staticmethod
    def path(folder: Path) -> Path:
        """Return where it is published."""
        return folder / "ray.json"
