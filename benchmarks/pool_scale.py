"""Does the pool carry 200 samples/s from 64 writers to 8 readers on 2 cores, in flat memory and 2 GB?

    python benchmarks/pool_scale.py                                 100,000 samples, about ten minutes
    python benchmarks/pool_scale.py --samples 3000 --max-gb 0.1 --burst 500             a small one

Generators are replaced by a clock that emits stored samples of about 120 kB. (a) Endurance: writers append
``--samples`` samples at ``--rate`` a second, each with the loop of a generator process (throttle, agenda, one
fsync and one commit a sample), and evict; readers take each sample once through ``PoolStream``,
decoded, with its target. (b) Burst: the same without the clock, ``--burst`` samples. (c) The alternative to
(b): loose ``.jpg`` and ``.json`` files, each written aside, synced and renamed; each writer removes its
oldest, readers list the folder. Memory is that of the writers and readers alone (their private pages),
measured from a quarter of the samples on; CPU milliseconds are per sample, so 10 of them are what two cores
have at 200 samples/s. ``--burst 0`` leaves (b) and (c) out. The last line is ``RESULT {json}``.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from loose_files import LooseSeries, loose_samples
from stored_sample import CATEGORIES, PICTURE_BYTES, SIDE_PX, stored_sample

from mflight.synthesis.pool.agenda import Agenda
from mflight.synthesis.pool.throttle import Throttle, bounded_shard
from mflight.synthesis.pool.writer import PoolWriter


@dataclass(frozen=True)
class Load:
    """One arm: where, how much, how fast."""

    folder: Path
    kind: str
    samples: int
    rate: float
    writers: int
    readers: int
    max_bytes: int
    batch_size: int


class Place:
    """What each process tells while it runs, in shared memory: samples done, seconds of the last one."""

    def __init__(self, context, load):
        count = load.writers + load.readers
        self.done, self.last_s = context.RawArray("q", count), context.RawArray("d", count)
        self.cpu_s = context.RawArray("d", count)
        self.unread, self.has_torch = context.RawArray("q", count), context.RawArray("q", count)
        self.start, self.end = context.Event(), context.Event()
        self.ready = context.Semaphore(0)

    @contextmanager
    def working(self, place):
        """Wait for the start of all, and tell the CPU seconds from then on."""
        self.ready.release()
        self.start.wait()
        before_s = cpu_seconds()
        yield
        self.cpu_s[place] = cpu_seconds() - before_s

    def count(self, place):
        self.done[place] += 1
        self.last_s[place] = time.monotonic()


def request_id(index):
    return f"0-{index:08d}"


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def write(load, place, shared, sample):
    """Append this writer's share of the samples, each when the clock strikes."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the one of the main process
    series = (PoolSeries if load.kind == "pool" else LooseSeries)(load, place)
    with shared.working(place):
        started = time.monotonic()
        while (batch := series.take()) is not None:
            for index in batch:
                if load.rate:
                    time.sleep(max(0.0, started + index / load.rate - time.monotonic()))
                series.append(replace(sample, sample_id=request_id(index)), index)
                shared.count(place)
            if not batch:
                time.sleep(0.2)
    shared.has_torch[place] = "torch" in sys.modules


class PoolSeries:
    """A generator process's loop over the pool, without the drawing."""

    def __init__(self, load, place):
        bounds = {"max_samples": None, "max_bytes": load.max_bytes}
        self.batch_size = load.batch_size
        self.writer = PoolWriter(load.folder, f"w{place}", **bounded_shard(load.writers, **bounds))
        high_water = load.max_bytes // (3 * PICTURE_BYTES)  # of three parts of the pool, one is unused
        self.throttle = Throttle(self.writer.index, high_water=high_water, when_full="evict", **bounds)
        share = {"worker_index": place, "num_workers": load.writers, "max_requests": load.samples}
        self.agenda = Agenda(self.writer.index, request_id, **share)

    def take(self):
        if self.agenda.is_done():
            return None
        return [] if self.throttle.pause() else self.agenda.take(self.batch_size)

    def append(self, sample, index):
        self.writer.append(sample, index=index)


def read(load, place, shared):
    """Take every sample of this rank once, decoded, with its target."""
    import torch

    import mflight.synthesis.stream  # noqa: F401  takes seconds: before the start
    from mflight.data.categories import Categories

    torch.set_num_threads(1)
    categories = Categories.from_lvis(CATEGORIES)
    rank = place - load.writers
    samples = (pool_samples if load.kind == "pool" else loose_samples)(load, rank, categories, shared, place)
    with shared.working(place):
        for image, target in samples:
            assert image.shape == (3, SIDE_PX, SIDE_PX) and len(target["masks"]) == 4
            shared.count(place)


def pool_samples(load, rank, categories, shared, place):
    from mflight.synthesis.pool.index import PoolError
    from mflight.synthesis.stream import PoolStream

    settings = {"rank": rank, "world_size": load.readers, "max_reuse": 1}
    stream = PoolStream(pool_dir=load.folder, categories=categories, **settings)
    while True:
        is_over = shared.end.is_set()
        ref = stream.next_ref()
        if ref is None and is_over:
            time.sleep(1.1)  # longer than the stream waits between two looks
            ref = stream.next_ref()
        if ref is None:
            if is_over:
                return
            time.sleep(0.05)
            continue
        try:
            yield stream.read(ref)
        except PoolError:
            stream.discard(ref)
            shared.unread[place] += 1


class Watch:
    """Sizes of the pool and of the processes while an arm runs."""

    def __init__(self, load, shared, processes):
        self.load, self.shared, self.processes = load, shared, processes
        self.peak_bytes, self.memory_mb = 0, []
        self.measured_at = 0.0

    def look(self, every_s):
        with suppress(FileNotFoundError):
            sizes = [entry.stat().st_size for entry in os.scandir(self.load.folder) if entry.is_file()]
            self.peak_bytes = max(self.peak_bytes, sum(sizes))
        written = sum(self.shared.done[: self.load.writers])
        if written >= self.load.samples // 4 and time.monotonic() - self.measured_at > every_s:
            self.measured_at = time.monotonic()
            self.memory_mb.append([private_mb(process.pid) for process in self.processes])

    def growth_mb(self):
        """Return by how much all, and the worst process, have grown, and what all hold at the end."""
        alive = [row for row in self.memory_mb if None not in row]
        if len(alive) < 2:
            return 0.0, 0.0, 0.0
        few = max(1, min(3, len(alive) // 2))
        columns = list(zip(*alive, strict=True))
        grown = [median(column[-few:]) - median(column[:few]) for column in columns]
        return sum(grown), max(grown), sum(alive[-1])


def private_mb(pid):
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024 or None


def check_alive(load, processes):
    codes = [process.exitcode for process in processes]
    if any(codes):
        sys.exit(f"{load.kind}: a process ended with an error, exit codes {codes}")


def run(load, every_s):
    """Run one arm in a fresh folder; return its figures."""
    fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
    load.folder.mkdir()
    shared, sample = Place(spawn, load), stored_sample()
    writers = [fork.Process(target=write, args=(load, n, shared, sample)) for n in range(load.writers)]
    ranks = range(load.writers, load.writers + load.readers)
    readers = [spawn.Process(target=read, args=(load, n, shared)) for n in ranks]
    watch = Watch(load, shared, [*writers, *readers])
    try:
        for process in watch.processes:
            process.start()
        for _ in watch.processes:
            while not shared.ready.acquire(timeout=5.0):
                check_alive(load, watch.processes)
        started = time.monotonic()
        shared.start.set()
        while any(process.is_alive() for process in writers):
            watch.look(every_s)
            check_alive(load, watch.processes)
            time.sleep(0.5)
        shared.end.set()
        for process in watch.processes:
            process.join()
        check_alive(load, watch.processes)
    finally:
        for process in watch.processes:
            if process.pid:
                process.kill()
        shutil.rmtree(load.folder)
    written, was_read = sum(shared.done[: load.writers]), sum(shared.done[load.writers :])
    growth_mb, worst_mb, total_mb = watch.growth_mb()
    return {
        "samples_per_s": written / (max(shared.last_s[: load.writers]) - started),
        "read_per_s": was_read / (max(shared.last_s[load.writers :]) - started),
        "memory_growth_mb": growth_mb,
        "memory_growth_worst_process_mb": worst_mb,
        "memory_mb": total_mb,
        "pool_peak_gb": watch.peak_bytes / 1e9,
        "written": written,
        "read": was_read,
        "writer_cpu_ms": 1e3 * sum(shared.cpu_s[: load.writers]) / written,
        "reader_cpu_ms": 1e3 * sum(shared.cpu_s[load.writers :]) / max(1, was_read),
        "evicted_unread": written - was_read,
        "evicted_while_held": sum(shared.unread),
        "writers_with_torch": sum(shared.has_torch),
        "sample_bytes": len(sample.picture),
    }


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # and leaves no process behind
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    processes = {"writers": args.writers, "readers": args.readers, "batch_size": args.batch_size}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        base = {"max_bytes": int(args.max_gb * 1e9), **processes}
        load = Load(Path(folder) / "pool", "pool", args.samples, args.rate, **base)
        result = run(load, args.measure_s)
        print(", ".join(f"{name} {value:,.4g}" for name, value in result.items()))
        if args.burst:
            result |= compare(replace(load, samples=args.burst, rate=0.0))
    result = {name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()}
    from device_clock import facts  # imports torch

    asked = {"clock_per_s": args.rate, "max_gb": args.max_gb, "cores": args.cores, "burst": args.burst}
    print("RESULT", json.dumps(result | processes | asked | facts("cpu")))


def compare(burst):
    """Run the pool and the loose files without the clock; return their rates and ratios."""
    ours, loose = run(burst, 1e9), run(replace(burst, kind="loose"), 1e9)
    for name, arm in (("pool", ours), ("loose files", loose)):
        rates = f"{arm['samples_per_s']:.0f} written, {arm['read_per_s']:.0f} read a second"
        cpu = f"{arm['writer_cpu_ms']:.1f} and {arm['reader_cpu_ms']:.1f} ms of CPU a sample"
        print(f"without a clock, {name}: {rates}, {cpu}, {arm['evicted_unread']} evicted unread")
    names = ("samples_per_s", "read_per_s")
    ratios = {f"ratio_{name}": ours[name] / loose[name] for name in names}
    print("pool over loose files:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    rates = {
        f"{kind}_{name}": arm[name] for kind, arm in (("burst", ours), ("loose", loose)) for name in names
    }
    return rates | ratios


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=210.0, help="strokes of the clock a second; 0 has none")
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--max-gb", type=float, default=2.0, help="bound of the pool, in 10^9 bytes")
    parser.add_argument("--batch-size", type=int, default=4, help="samples between two looks at the pool")
    parser.add_argument("--burst", type=int, default=5000, help="samples of the arms without a clock")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--measure-s", type=float, default=10.0, help="seconds between measures of memory")
    parser.add_argument("--folder", help="where the pools are made; by default the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
