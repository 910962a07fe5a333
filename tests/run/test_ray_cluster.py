"""A training run whose generators are Ray actors on a cluster of three real nodes, one of which is killed."""

import re

import pytest

from mflight.synthesis.pool import PoolReader
from mflight.synthesis.ray_status import RayStatus
from tests.run.conftest import SMALL, SMALL_SYNTHESIS

pytest.importorskip("ray", reason="Ray is not installed: uv sync --extra ray")
pytestmark = pytest.mark.slow

NODE = {"object_store_memory": 80 * 2**20, "include_log_monitor": False}
HEAD = {**NODE, "num_cpus": 0, "include_dashboard": False, "no_monitor": True}
ATTEMPTS = 3  # Ray gives a node 15 seconds to start, a busy machine may need more


@pytest.fixture
def cluster(monkeypatch):
    """A head without cores for generators, and two nodes with one core each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for attempt in range(ATTEMPTS):
        started = Cluster(shutdown_at_exit=True)
        try:
            started.add_node(**HEAD)
            for _ in range(2):
                started.add_node(**NODE, num_cpus=1)
            break
        except Exception:
            started.shutdown()
            if attempt == ATTEMPTS - 1:
                raise
    yield started
    started.shutdown()


def test_training_goes_on_without_a_killed_node_and_tells_of_it(jobs, cluster):
    job = jobs.start(
        "ray",
        *SMALL,
        *SMALL_SYNTHESIS,
        "trainer.max_steps=12",
        "synthesis.wait=true",
        "synthesis.max_reuse=1",  # each step needs one new sample, so the other generator must go on
        "synthesis/launcher=ray",
        f"synthesis.service.address={cluster.address}",
        "synthesis.service.num_generators=2",
        "+synthesis.service.backoff_s=0.1",
        "+synthesis.service.high_water=8",
    )
    pool = job.run_dir / "pool"
    job.wait_until(lambda: RayStatus.read(pool).alive == 2 and job.generator.accepted > 0)
    node = cluster.list_all_nodes()[-1]
    cluster.remove_node(node, allow_graceful=False)
    assert job.wait() == 0, job.output
    results = job.results
    first = results["messages"][0]
    assert re.fullmatch(
        rf"Ray generator [01] was lost on \S+ \({node.node_id[:6]}\) with its process or its node "
        r"\(Actor\w+Error\); restart 1 of 5 in 0\.1 s",
        first,
    )
    assert job.output.count(first) >= 2  # when it happened, and at the end
    assert (results["steps"], results["synthesis/fresh"]) == (12, 12)
    assert results["synthesis/generator_deaths"] == 1
    refs = PoolReader(pool).poll()
    assert len({ref.index for ref in refs}) == len(refs) >= 12
    assert {ref.shard.split("-")[1] for ref in refs} == {"w0"}
