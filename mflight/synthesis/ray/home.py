"""The main function of the process that drives Ray generators: hand out requests, append what comes home.

It is a child of the trainer's first rank, as a local generator is, so that nothing of Ray runs in a training
process. The pool is written by this process alone.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from mflight.synthesis.pool.agenda import Agenda
from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.ray.cluster import ClusterView, connect, make_actor_class, nodes_alive
from mflight.synthesis.ray.dispatcher import Dispatcher
from mflight.synthesis.ray.link import GeneratorLink, GeneratorLostError
from mflight.synthesis.ray.settings import RayGeneratorSettings
from mflight.synthesis.ray.status import RayStatus
from mflight.synthesis.worker import (
    EXIT_GIVEN_UP,
    UnfitSettingsError,
    WorkerSpec,
    build_part,
    build_throttle,
    run_writer,
)

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_LOOK_AT_NODES_S = 2.0
_PUBLISH_S = 0.5


def run_ray_home(spec: WorkerSpec) -> None:
    """Drive the generators until told to stop; ends as ``run_worker`` does, or with ``EXIT_GIVEN_UP``.

    Args:
        spec: what to draw, where, and how fast.
    """
    run_writer(spec, RayHome)


class RayHome:
    """Keeps every generator busy while the pool wants samples, and replaces those that die.

    Args:
        spec: what to draw, where, and how fast.
        writer: of the pool.
        status: of this process, with the figures of all generators together.
    """

    def __init__(self, spec: WorkerSpec, writer: PoolWriter, status: WorkerStatus):
        self._spec, self._writer, self._status = spec, writer, status
        self._settings: RayGeneratorSettings = spec.settings
        settings, self._folder = self._settings, spec.settings.pool_dir
        self._is_told_to_stop = False
        self._told = RayStatus.read(self._folder)
        self._earlier_deaths = self._told.num_deaths
        self._links: list[GeneratorLink] = []
        self._idle_s, self._busy_s, self._ready_s = status.idle_s, status.busy_s, 0.0
        self._looked_at_nodes = self._published_at = time.monotonic()
        status.batch_size = settings.batch_size
        status.state = "loading"
        status.write(self._folder)
        self._throttle = build_throttle(settings, writer.index)
        self._planner = build_part(settings.planner)
        goals = {"max_requests": settings.max_requests, "num_samples": settings.num_samples}
        self._dispatcher = Dispatcher(Agenda(writer.index, self._planner.request_id, **goals))
        cluster = connect(settings.address, settings.runtime_env)
        signal.signal(signal.SIGTERM, self._stop)  # Ray has set its own
        self._nodes = cluster.nodes
        self._links = self._make_links(cluster)
        self._publish("drawing")

    def run(self) -> None:
        """Answer requests until they end, until told to stop, or until no generator is left."""
        import ray

        try:
            while not self._dispatcher.is_done() and self._may_go_on():
                self._tend()
                state = self._hand_out()
                self._receive()
                self._look_at_nodes()
                if state != self._status.state or time.monotonic() - self._published_at > _PUBLISH_S:
                    self._publish(state)
                if all(link.is_given_up for link in self._links):
                    self._status.message = self._told.messages[-1]
                    self._publish("failed")
                    sys.exit(EXIT_GIVEN_UP)
            self._publish("done" if self._may_go_on() else "stopped")
        finally:
            for link in self._links:
                link.discard()
            ray.shutdown()

    def _make_links(self, cluster: ClusterView) -> list[GeneratorLink]:
        settings = self._settings
        if cluster.home_gpus and not settings.use_home_gpus:
            raise UnfitSettingsError(
                f"this host offers {cluster.home_gpus} of its GPUs to Ray, those may not train as well: "
                "start Ray here with --num-gpus=0, or say synthesis.service.use_home_gpus=true"
            )
        count = settings.num_generators
        if count == "auto":
            count = cluster.num_gpus or len(cluster.nodes)
        actor_class = make_actor_class(num_gpus=min(1, cluster.num_gpus), num_cpus=settings.num_threads)
        of_actor = {
            "synthesizer": settings.synthesizer,
            "batch_size": settings.batch_size,
            "num_threads": settings.num_threads,
            "has_gpu": cluster.num_gpus > 0,
            "image_format": settings.image_format,
        }
        restarts = {name: getattr(settings, name) for name in ("max_restarts", "backoff_s", "without_worker")}
        return [GeneratorLink(number, actor_class, of_actor, **restarts) for number in range(count)]

    def _tend(self) -> None:
        """Start the generators whose time has come, and end the wait of those that find no place."""
        for link in self._links:
            if link.is_due:
                link.launch()
            waited_s = time.monotonic() - link.launched_at
            if link.is_launched and link.place is None and waited_s > self._settings.place_timeout_s:
                what = f"has found no place in the cluster, or was not ready, for {waited_s:.0f} s"
                self._lose(link, what)

    def _hand_out(self) -> str:
        """Send requests to whoever can take some; return this process's state."""
        pause = self._throttle.pause()
        if pause is not None:
            return pause
        for link in self._links:
            while link.can_take_a_call:
                batch = self._dispatcher.take(link.number, self._settings.batch_size)
                if not batch:
                    break
                link.call([self._planner.request(index).to_dict() for index in batch])
        self._check_end()
        return "drawing"

    def _check_end(self) -> None:
        """Nothing goes on when all that is left to do was left out."""
        left_out = self._dispatcher.left_out
        is_idle = self._dispatcher.is_all_home and any(link.can_take_a_call for link in self._links)
        if left_out and is_idle and not self._dispatcher.is_done():
            raise RuntimeError(f"requests {left_out} end every generator; no other is left to draw")

    def _receive(self) -> None:
        """Wait a moment, and append what has come home."""
        import ray

        awaited = {ref: link for link in self._links for ref in link.awaited()}
        if not awaited:
            time.sleep(_POLL_S)
            return
        some, _ = ray.wait(list(awaited), num_returns=1, timeout=_POLL_S)
        if not some:
            return
        ready, _ = ray.wait(list(awaited), num_returns=len(awaited), timeout=0)
        for ref in ready:
            link = awaited[ref]
            if not link.is_launched:  # lost by one of its other answers
                continue
            try:
                answer = link.receive(ref)
            except GeneratorLostError as error:
                self._lose(link, str(error))
            else:
                if answer is not None:
                    self._keep(link, answer)

    def _keep(self, link: GeneratorLink, answer: Mapping[str, Any]) -> None:
        if not self._dispatcher.answer(link.number, answer["index"]):
            return
        self._writer.acknowledge(answer["answer"], answer["span"])
        status = self._status
        status.busy_s += answer["busy_s"]
        status.batch_size = answer["batch_size"]
        for stage, seconds in answer["stage_s"].items():
            status.stage_s[stage] = status.stage_s.get(stage, 0.0) + seconds

    def _lose(self, link: GeneratorLink, what: str) -> None:
        was_drawing = min(self._settings.batch_size, len(self._dispatcher.in_hand(link.number)))
        left_out = self._dispatcher.give_back(link.number, num_suspects=was_drawing)
        link.discard()
        self._tell(f"Ray generator {link.number} {link.note_death(what)}")
        if left_out:
            self._tell(f"requests {left_out} are left out: each was with several generators when they died")

    def _look_at_nodes(self) -> None:
        """Tell of nodes that have left the cluster."""
        if time.monotonic() - self._looked_at_nodes < _LOOK_AT_NODES_S:
            return
        self._looked_at_nodes = time.monotonic()
        alive = nodes_alive()
        for node_id, name in self._nodes.items():
            if node_id not in alive:
                self._tell(f"Ray node {name} has left the cluster, {len(alive)} nodes are left")
        self._nodes = alive

    def _publish(self, state: str) -> None:
        now, status, told = time.monotonic(), self._status, self._told
        ready = sum(link.place is not None for link in self._links)
        self._ready_s += ready * (now - self._published_at)
        self._published_at = now
        status.idle_s = self._idle_s + max(0.0, self._ready_s - (status.busy_s - self._busy_s))
        status.state = state
        status.take_counts(self._writer.counts)
        status.write(self._folder)
        is_over = state in ("done", "stopped")
        told.pid, told.alive = os.getpid(), 0 if is_over else ready
        told.given_up = sum(link.is_given_up for link in self._links)
        told.restarting = 0 if is_over else len(self._links) - ready - told.given_up
        told.num_deaths = self._earlier_deaths + sum(link.num_deaths for link in self._links)
        told.write(self._folder)

    def _tell(self, message: str) -> None:
        logger.warning(message)
        self._told.messages.append(message)

    def _may_go_on(self) -> bool:
        is_orphan = self._spec.parent_pid not in (0, os.getppid())
        return not self._is_told_to_stop and not is_orphan

    def _stop(self, *_: object) -> None:
        self._is_told_to_stop = True
