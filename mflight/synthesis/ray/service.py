"""Keeps Ray generators on any machines of a cluster alive beside a training run. No torch, no Ray in here."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import ConfigDict, Field, validate_call

from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.ray.cluster import require_ray
from mflight.synthesis.ray.home import EXIT_GIVEN_UP, run_ray_home
from mflight.synthesis.ray.status import RayHomeSpec, RayStatus
from mflight.synthesis.service import PositiveInt, ServiceReport, SynthesisService, WorkerPlace
from mflight.synthesis.worker import log_path

logger = logging.getLogger(__name__)

_LOOK_S = 0.1


class RaySynthesisService(SynthesisService):
    """The same service with generators as Ray actors anywhere in a cluster, one GPU each.

    The trainer's host needs to be a node of the cluster. One process here, the driver, plans the requests,
    sends them out and appends what comes home to the pool; it is watched as a local generator is. Actors are
    streaming generators with back-pressure. A request whose actor died before its sample was in the pool is
    handed to another; requests, ids and samples are those of the local service with the same seed. ``start``
    waits until the driver has joined the cluster: a cluster that does not answer is a ConnectionError, and so
    is one that offers GPUs of this host without ``use_home_gpus``. Ray that is not installed is a
    ModuleNotFoundError.

    Args:
        address: ``host:port`` of the cluster's head, or ``"auto"`` for the cluster that this host belongs to.
        num_generators: actors; ``"auto"``: one for each GPU of the cluster, or for each node without any.
        use_home_gpus: Ray may place actors on the GPUs that this host offers it: those do not train.
        runtime_env: of the actors, as ``ray.init`` takes it, such as ``{"env_vars": {...}}``.
        max_restarts: how often each actor, and the driver, is started again.
        backoff_s: wait before the first restart, in seconds; doubled each time, at most a minute.
        place_timeout_s: an actor that is not ready so long after its start counts as dead, in seconds.
        connect_timeout_s: wait of ``start`` for the driver, in seconds.
        without_worker: what a message says of the time after an actor that is given up.
        **settings: the other ones of ``SynthesisService`` but ``devices``. ``num_threads`` are the CPU
            cores that an actor holds. The planner is built here, the synthesizer by each actor: the
            checkpoint must be on each machine, and its ``device: auto`` is the actor's GPU, else its CPU.

    Raises:
        ValueError: if ``address`` is one of Ray Client, ``ray://``.
    """

    _run = staticmethod(run_ray_home)

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        address: str = "auto",
        num_generators: PositiveInt | Literal["auto"] = "auto",
        use_home_gpus: bool = False,
        runtime_env: Mapping[str, Any] | None = None,
        max_restarts: Annotated[int, Field(ge=0)] = 5,
        backoff_s: Annotated[float, Field(ge=0.0)] = 1.0,
        place_timeout_s: Annotated[float, Field(gt=0.0)] = 600.0,
        connect_timeout_s: Annotated[float, Field(gt=0.0)] = 60.0,
        without_worker: str = "training goes on while the pool has samples to use",
        **settings: Any,
    ):
        require_ray()
        if address.startswith("ray://"):  # its client has no streaming generators
            raise ValueError(f"synthesis.service.address must be host:port or auto, got {address}")
        restarts = {"max_restarts": max_restarts, "backoff_s": backoff_s, "without_worker": without_worker}
        super().__init__(**restarts, **settings)
        (self._driver,) = self._workers
        self._driver.spec = RayHomeSpec(
            **vars(self._driver.spec),
            address=address,
            num_generators=None if num_generators == "auto" else num_generators,
            use_home_gpus=use_home_gpus,
            runtime_env=OmegaConf.to_container(OmegaConf.create(dict(runtime_env or {}))),
            place_timeout_s=place_timeout_s,
            **restarts,
        )
        self._connect_timeout_s = connect_timeout_s
        self._num_told = 0

    def start(self) -> None:
        """Start the driver and wait until it has joined the cluster; actors load their models later.

        Raises:
            ConnectionError: with what the driver said, if it could not.
        """
        RayStatus.path(self._folder).unlink(missing_ok=True)
        super().start()
        process, deadline = self._driver.process, time.monotonic() + self._connect_timeout_s
        pid = process.pid if process is not None else 0  # poll tells of a process that could not be started
        while RayStatus.read(self._folder).pid != pid:
            if not process.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise ConnectionError(self._why_not_connected(pid))
            time.sleep(_LOOK_S)

    def poll(self) -> ServiceReport:
        """Look after the driver, and tell what happened to it and to the actors; waits for nothing."""
        report = super().poll()
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

    def _why_not_connected(self, pid: int) -> str:
        spec = self._driver.spec
        said = WorkerStatus.read(self._folder, spec.writer_name)
        if said.pid == pid and said.message:
            return said.message.partition(": ")[2]  # without the name of the error
        return (
            f"synthesis.service.address={spec.address}: no Ray cluster has answered there for "
            f"{self._connect_timeout_s:g} s, see {log_path(self._folder, spec.writer_name)}"
        )

    def _note_end(self, worker: WorkerPlace, exit_code: int, pid: int) -> None:
        if exit_code == EXIT_GIVEN_UP:  # what led to it has been told
            worker.is_given_up = True
        else:
            super()._note_end(worker, exit_code, pid)

    def _name(self, worker: WorkerPlace) -> str:
        return f"the Ray driver (writer {worker.spec.writer_name})"
