"""The few calls by which home reaches a Ray cluster. Ray is imported by the functions that need it only."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mflight.synthesis.ray.generator import RayGenerator


@dataclass(frozen=True)
class ClusterView:
    """What a cluster offered when home joined it.

    Attributes:
        nodes: name of each node by its id.
        num_gpus: GPUs of all nodes.
        home_gpus: GPUs of this host's node.
    """

    nodes: dict[str, str]
    num_gpus: int
    home_gpus: int


def require_ray() -> None:
    """Raise a ModuleNotFoundError with the command that installs Ray, if it is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(
            "synthesis/launcher=ray needs Ray, which is not installed: uv sync --extra ray, "
            "or pip install 'mflight[ray]'"
        )


def connect(address: str, runtime_env: Mapping[str, Any]) -> ClusterView:
    """Join a running cluster as its driver.

    Args:
        address: ``host:port`` of the cluster's head, or ``"auto"`` for the one that this host belongs to.
        runtime_env: of the actors, as ``ray.init`` takes it.

    Returns:
        What the cluster offers now.

    Raises:
        ConnectionError: if no cluster answers there.
    """
    # Under `uv run` Ray would send the working folder, runs and all, to each node and build its environment.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    try:
        ray.init(
            address=address,
            configure_logging=False,
            runtime_env=dict(runtime_env) if runtime_env else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"synthesis.service.address={address}: no Ray cluster answers there from this host ({error}); "
            "'ray start --head' begins one, 'ray start --address=HEAD:6379 --num-gpus=0' joins this host"
        ) from error
    home = ray.get_runtime_context().get_node_id()
    gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]}
    return ClusterView(nodes_alive(), sum(gpus.values()), gpus.get(home, 0))


def nodes_alive() -> dict[str, str]:
    """Return the name of each living node of the cluster by its id."""
    import ray

    return {
        node["NodeID"]: name_node(node["NodeManagerHostname"], node["NodeID"])
        for node in ray.nodes()
        if node["Alive"]
    }


def name_node(host: str, node_id: str) -> str:
    """Return how messages name a node: several may run on one host."""
    return f"{host} ({node_id[:6]})"


def make_actor_class(*, num_gpus: int, num_cpus: int) -> Any:
    """Return Ray's actor class of a generator; mflight, not Ray, starts a dead one again.

    Args:
        num_gpus: GPUs that an actor holds.
        num_cpus: CPU cores that it holds.

    Returns:
        The class; ``remote`` takes the arguments of ``RayGenerator``.
    """
    import ray

    return ray.remote(RayGenerator).options(
        num_gpus=num_gpus,
        num_cpus=num_cpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )
