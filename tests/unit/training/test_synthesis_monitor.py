"""The figures that are logged, of a real stream over a real pool."""

import functools
from dataclasses import replace

import pytest

from mflight.data.slots import SlotCounts
from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.service import ServiceReport
from mflight.synthesis.stream import PoolStream
from mflight.training.callbacks.synthesis_monitor import SynthesisMonitor, generator_figures, slot_figures
from tests.unit.synthesis.squares import make_sample


def test_shares_are_of_the_synthetic_slots():
    figures = slot_figures(SlotCounts(real=10, fresh=2, reused=5, fallback=3, wait_s=1.5))
    assert figures["synthesis/fresh_ratio"] == 0.2 and figures["synthesis/reused_ratio"] == 0.5
    assert figures["synthesis/fallback_ratio"] == 0.3 and figures["synthesis/wait_s"] == 1.5
    assert figures["synthesis/synthetic_share"] == 7 / 20


def test_generators_are_summed_and_rejections_named():
    one = WorkerStatus(
        "w0", accepted=3, regions=8, rejected={"torn": 2}, size_bytes=100, busy_s=3.0, idle_s=1.0
    )
    two = replace(one, writer="w1", rejected={"cut": 4}, idle_s=5.0)
    figures = generator_figures(ServiceReport(2, 0, 0, 0, (), (one, two)))
    assert (figures["synthesis/images"], figures["synthesis/pool_bytes"]) == (6, 200)
    assert (figures["synthesis/rejected/torn"], figures["synthesis/rejected/cut"]) == (2, 4)
    assert figures["synthesis/rejected_ratio"] == 6 / 16
    assert figures["synthesis/generator_idle_ratio"] == 0.5


def test_reuse_and_pool_size(tmp_path, build_datamodule):
    with PoolWriter(tmp_path, "w0") as writer:
        for index in range(3):
            writer.append(make_sample(index), index=index)
    stream = functools.partial(PoolStream, pool_dir=tmp_path, poll_interval_s=0.0)
    data, monitor = build_datamodule(stream=stream), SynthesisMonitor()
    data.synthetic.open()
    for _ in range(4):  # samples 0, 1, 2, 0
        data.synthetic.stream.next_ref()
    figures = monitor.figures(data)
    assert figures["synthesis/pool_samples"] == 3
    assert figures["synthesis/mean_uses"] == pytest.approx(4 / 3)
