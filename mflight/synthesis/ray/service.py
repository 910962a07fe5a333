"""Keeps Ray generators on any machines of a cluster alive beside a training run. No torch, no Ray in here."""

import logging
import re
import time
from dataclasses import replace

from mflight.synthesis.process_keeper import ProcessKeeper, stop_processes
from mflight.synthesis.ray.home import run_ray_home
from mflight.synthesis.ray.settings import RayGeneratorSettings
from mflight.synthesis.ray.status import RayStatus
from mflight.synthesis.service import ServiceReport, look_after
from mflight.synthesis.worker import WorkerSpec

logger = logging.getLogger(__name__)

_LOOK_S = 0.1


class RaySynthesisService:
    """The same service as ``SynthesisService``, with generators as Ray actors anywhere in a cluster.

    The trainer's host needs to be a node of the cluster. One process here, the driver, plans the requests,
    sends them out and appends what comes home to the pool; it is kept alive as a local generator is. Actors
    are streaming generators with back-pressure. A request whose actor died before its sample was in the pool
    is handed to another; requests, ids and samples are those of the local service with the same seed.
    ``start`` waits until the driver has joined the cluster: a cluster that does not answer is a
    ConnectionError, and so is one that offers GPUs of this host without ``use_home_gpus``.

    Args:
        settings: of the generators.
    """

    def __init__(self, settings: RayGeneratorSettings):
        self._settings, self._folder = settings, settings.pool_dir
        self._spec = WorkerSpec(settings)
        name = f"the Ray driver (writer {self._spec.writer_name})"
        self._driver = ProcessKeeper(run_ray_home, self._spec, name=name)
        self._num_told = 0

    def start(self) -> None:
        """Start the driver and wait until it has joined the cluster; actors load their models later.

        Raises:
            ConnectionError: with what the driver said, if it could not.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        RayStatus.path(self._folder).unlink(missing_ok=True)
        self._driver.start()
        process, deadline = self._driver.process, time.monotonic() + self._settings.connect_timeout_s
        pid = process.pid if process is not None else 0  # poll tells of a process that could not be started
        while RayStatus.read(self._folder).pid != pid:
            if not process.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise ConnectionError(self._why_not_connected(pid))
            time.sleep(_LOOK_S)

    def poll(self) -> ServiceReport:
        """Look after the driver, and tell what happened to it and to the actors; waits for nothing."""
        report = look_after([self._driver])
        said = RayStatus.read(self._folder)
        news = tuple(said.messages[self._num_told :])
        self._num_told += len(news)
        for message in news:
            logger.warning(message)
        process = self._driver.process
        is_connected = process is not None and said.pid == process.pid
        return replace(
            report,
            alive=said.alive if is_connected else 0,
            restarting=said.restarting if is_connected else report.alive + report.restarting,
            given_up=said.given_up or report.given_up,
            num_deaths=report.num_deaths + said.num_deaths,
            messages=(*news, *report.messages),
        )

    def stop(self) -> None:
        """End the driver, and with it all generators."""
        stop_processes([self._driver], self._settings.stop_timeout_s)

    def __enter__(self) -> "RaySynthesisService":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _why_not_connected(self, pid: int) -> str:
        said = self._driver.status
        if said.pid == pid and said.message:
            return re.sub(r"^\w+Error: ", "", said.message)
        return (
            f"synthesis.service.address={self._settings.address}: no Ray cluster has answered there for "
            f"{self._settings.connect_timeout_s:g} s, see {self._spec.log_file}"
        )
