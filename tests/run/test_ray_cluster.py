"""Generators as Ray actors on a cluster of three real nodes; only the diffusion model is a quick stand-in."""

import os
import re
import signal
from dataclasses import replace

import pytest

from mflight.synthesis.pool.index import tell_uses
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.ray.status import RayStatus
from tests.run.conftest import SMALL
from tests.unit.synthesis.squares import PLANNER, SYNTHESIZER
from tests.unit.synthesis.test_service import poll_until

pytest.importorskip("ray", reason="Ray is not installed: uv sync --extra ray")
pytestmark = pytest.mark.slow

NODE = {"object_store_memory": 80 * 2**20, "include_log_monitor": False}
HEAD = {**NODE, "num_cpus": 0, "include_dashboard": False, "no_monitor": True}
ATTEMPTS = 3  # Ray gives a node 15 seconds to start, a busy machine may need more


@pytest.fixture(scope="module")
def cluster():
    """A head without cores for generators, and two nodes with one core each."""
    from ray.cluster_utils import Cluster

    for attempt in range(ATTEMPTS):
        started = Cluster()
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


def use_all(folder):
    tell_uses(folder, {ref.sample_id: 1 for ref in PoolReader(folder).poll()})


def answered(folder):
    reader = PoolReader(folder)
    kept = [reader.read(ref).provenance["index"] for ref in reader.poll()]
    return kept, sorted(int(name[2:]) for name in reader.ids("dropped"))


def test_generators_pause_wake_and_outlive_a_bad_request_and_their_driver(tmp_path, cluster):
    from mflight.synthesis.ray.service import RaySynthesisService
    from mflight.synthesis.ray.settings import RayGeneratorSettings

    settings = RayGeneratorSettings(
        pool_dir=tmp_path,
        planner=PLANNER,
        synthesizer={**SYNTHESIZER, "error_at": 30},
        address=cluster.address,
        num_generators=2,
        max_requests=40,
        high_water=9,
        low_water=2,
        backoff_s=0.0,
    )
    running = RaySynthesisService(settings)
    with running:
        report, messages = poll_until(running, lambda report: report.statuses[0].state == "paused")
        assert 9 <= report.total("accepted") <= 9 + 4  # what is on its way when it pauses comes home
        os.kill(report.statuses[0].pid, signal.SIGKILL)
        report, more = poll_until(running, lambda report: use_all(tmp_path) or report.is_over)
        messages += more
    kept, dropped = answered(tmp_path)
    assert kept == [index for index in range(40) if index % 4 != 3 and index != 30]
    assert dropped == list(range(3, 40, 4))
    (killed,) = [message for message in messages if "driver" in message]
    assert killed == "the Ray driver (writer w0) was killed by SIGKILL; restart 1 of 5 in 0 s"
    deaths = [message for message in messages if "with ValueError: request 30 is cursed; restart" in message]
    assert len(deaths) == 3 and report.num_deaths == 4
    assert "requests [30] are left out: each was with several generators when they died" in messages


def test_what_can_never_be_built_is_told_once_and_never_restarted(tmp_path, cluster):
    from mflight.synthesis.ray.service import RaySynthesisService
    from mflight.synthesis.ray.settings import RayGeneratorSettings

    settings = RayGeneratorSettings(
        pool_dir=tmp_path,
        planner=PLANNER,
        synthesizer={**SYNTHESIZER, "nonsense": 7},
        address=cluster.address,
        num_generators=1,
        max_requests=4,
    )
    with RaySynthesisService(settings) as running:
        report, messages = poll_until(running, lambda report: report.is_over)
    (told,) = messages
    assert "nonsense" in told and "restart" not in told and report.total("accepted") == 0
    settings = replace(settings, planner={**PLANNER, "nonsense": 7}, synthesizer=SYNTHESIZER)
    with pytest.raises(ConnectionError, match="nonsense is refused: Unexpected keyword argument"):
        RaySynthesisService(settings).start()


def test_training_goes_on_without_a_killed_node_and_tells_of_it(jobs, cluster):
    released = jobs.folder / "ray_released"
    hold = f"hold_from: 6, hold_file: '{released}'"  # so both hold requests when one of them dies
    job = jobs.start(
        "ray",
        *SMALL,
        "trainer.max_steps=12",
        "synthesis.warmup_steps=0",
        "synthesis.cooldown_ratio=0",
        "synthesis.wait=true",
        "synthesis.max_reuse=1",  # each step needs one new sample, so none may be lost
        "synthesis/launcher=ray",
        f"synthesis.service.address={cluster.address}",
        "synthesis.service.num_generators=2",
        "synthesis.service.backoff_s=0.1",
        "synthesis.service.max_requests=16",
        "diffusion.batch_size=2",
        "~diffusion.synthesizer",
        f"+diffusion.synthesizer={{_target_: {SYNTHESIZER['_target_']}, device: auto, {hold}}}",
    )
    pool = job.run_dir / "pool"
    job.wait_until(lambda: RayStatus.read(pool).alive == 2 and job.generator.accepted >= 3)
    node = cluster.list_all_nodes()[-1]
    cluster.remove_node(node, allow_graceful=False)
    job.wait_until(lambda: RayStatus.read(pool).messages)  # its actor may outlive the node by a moment
    released.touch()
    assert job.wait() == 0, job.output
    results = job.results
    first = results["messages"][0]
    assert re.fullmatch(
        rf"Ray generator [01] was lost on \S+ \({node.node_id[:6]}\) with its process or its node "
        r"\(Actor\w+Error\); restart 1 of 5 in 0\.1 s",
        first,
    )
    assert job.output.count(first) >= 2  # when it happened, and at the end
    assert results["synthesis/generator_deaths"] == 1
    assert (results["steps"], results["synthesis/fresh"]) == (12, 12)
    assert answered(pool) == ([index for index in range(16) if index % 4 != 3], [3, 7, 11, 15])
