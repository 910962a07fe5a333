"""What the process that drives Ray generators tells the trainer. No torch, no Ray."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from mflight.synthesis.pool.signals import read_json, write_json


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
