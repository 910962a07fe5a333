"""Keeps the generator processes alive beside a training run, and tells what happens to them. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mflight.synthesis.generator_settings import GeneratorSettings
from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.process_keeper import ProcessKeeper, stop_processes
from mflight.synthesis.worker import WorkerSpec, run_worker


@dataclass(frozen=True)
class ServiceReport:
    """Where the generators stand.

    Attributes:
        alive: processes that live now.
        restarting: dead workers that wait to be started again.
        given_up: workers that will not be started again.
        num_deaths: deaths since the service began.
        messages: what has happened since the last report; each is told once.
        statuses: what each worker has last published.
    """

    alive: int
    restarting: int
    given_up: int
    num_deaths: int
    messages: tuple[str, ...]
    statuses: tuple[WorkerStatus, ...]

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be drawn."""
        return self.alive == 0 and self.restarting == 0

    def total(self, name: str) -> float:
        """Return the sum of a number over the workers, such as ``accepted``, ``regions`` or ``idle_s``."""
        return sum(getattr(status, name) for status in self.statuses)

    def total_by_name(self, name: Literal["rejected", "stage_s"]) -> dict[str, float]:
        """Return the sums of a table over the workers: regions by rule, or seconds by stage."""
        sums: dict[str, float] = {}
        for status in self.statuses:
            for key, value in getattr(status, name).items():
                sums[key] = sums.get(key, 0) + value
        return sums


class SynthesisService:
    """Starts one generator process per device and starts it again when it dies; never raises into training.

    ``start``, ``poll`` and ``stop`` belong to one thread that lives as long as the run: on Linux the
    processes die with the thread that started them.

    Args:
        settings: of the generators.
    """

    def __init__(self, settings: GeneratorSettings):
        self._settings = settings
        self._keepers = [
            ProcessKeeper(run_worker, WorkerSpec(settings, index), name=f"generator w{index}")
            for index in range(len(settings.devices))
        ]

    def start(self) -> None:
        """Start the generators; they load their models while the caller goes on."""
        self._settings.pool_dir.mkdir(parents=True, exist_ok=True)
        for keeper in self._keepers:
            keeper.start()

    def poll(self) -> ServiceReport:
        """Look after the generators, start again those whose time has come, and tell what happened."""
        return look_after(self._keepers)

    def stop(self) -> None:
        """End all generators: each may finish its batch, then it is killed. Leaves no process behind."""
        stop_processes(self._keepers, self._settings.stop_timeout_s)

    def __enter__(self) -> "SynthesisService":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def look_after(keepers: Sequence[ProcessKeeper]) -> ServiceReport:
    """Look after some processes, and return where they stand.

    Args:
        keepers: of the processes.

    Returns:
        The report; its messages are those since the last one.
    """
    messages = [message for keeper in keepers for message in keeper.look_after()]
    return ServiceReport(
        alive=sum(keeper.process is not None for keeper in keepers),
        restarting=sum(keeper.restart_at is not None for keeper in keepers),
        given_up=sum(keeper.is_given_up for keeper in keepers),
        num_deaths=sum(keeper.num_deaths for keeper in keepers),
        messages=tuple(messages),
        statuses=tuple(keeper.status for keeper in keepers),
    )
