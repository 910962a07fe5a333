"""Does drawing beside the training slow it down? Steps/s with the online pool over steps/s with a ready one.

    python benchmarks/overlap.py [--trainer-cores 0] [--generator-cores 1] [--blocks 6] [HYDRA OVERRIDES ...]

One detector trains in this process, pinned to its cores; the generator is another process on its own cores
(or its own GPU). Two loaders with the same settings and seed feed it in turn, block by block (A B B A ...):

- online: the pool that the generator fills meanwhile, as `synthesis=online` has it;
- ready: a copy of that pool as it was after the warm-up. The generator is stopped by SIGSTOP meanwhile, so it
  takes neither a core nor memory bandwidth.

Step k of either arm has the same real images, the same augmentation seeds and the same number of synthetic
slots, and both have the same cap of uses. Each pair of blocks gives a ratio; the median is reported.
`generator_busy_share` is measured between the generator's own reports within the online blocks;
`trainer_wait_share` is the time that the trainer spends in asking for samples or waiting for them. The
last line is ``RESULT {json}``.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch is imported later: generators import this file


class Arm:
    """One loader: its batches, and what was measured on it."""

    def __init__(self, cfg: Any, pool: Path):
        from hydra.utils import instantiate

        cfg.paths.pool_dir, cfg.synthesis.service = str(pool), None
        self.datamodule = instantiate(cfg.datamodule)
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self._time(self.datamodule.synthetic.stream)
        self._batches = self._endless()
        self.block_s: list[float] = []
        self.asking_s = 0.0

    @property
    def counts(self) -> Any:
        return self.datamodule.counts

    def next(self) -> Any:
        return next(self._batches)

    def _time(self, stream: Any) -> None:
        """Let a stream add up the time of asking it for samples."""
        ask = stream.next_ref

        def next_ref(**how: Any) -> Any:
            started = time.perf_counter()
            ref = ask(**how)
            self.asking_s += time.perf_counter() - started
            return ref

        stream.next_ref = next_ref

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.datamodule.train_dataloader()


class Detector:
    """The configured detector and its optimizer, one step at a time."""

    def __init__(self, cfg: Any, device: str):
        import torch
        from hydra.utils import instantiate

        torch.manual_seed(cfg.seed)
        self._torch, self._device = torch, torch.device(device)
        self._module = instantiate(cfg.module).to(self._device).train()
        configured = self._module.configure_optimizers()
        self._optimizer = configured["optimizer"] if isinstance(configured, dict) else configured

    def step(self, batch: Any) -> None:
        """Train on one batch, to the end."""
        images = [image.to(self._device) for image in batch[0]]
        targets = [
            {k: v.to(self._device) if self._torch.is_tensor(v) else v for k, v in target.items()}
            for target in batch[1]
        ]
        loss = sum(self._module.model(images, targets).values())
        self._optimizer.zero_grad()
        loss.backward()
        self._torch.nn.utils.clip_grad_norm_(self._module.parameters(), 10.0)
        self._optimizer.step()
        loss.item()


class Generator:
    """The running service, which can be held still, and how busy it was when it was not."""

    def __init__(self, service: Any):
        self._service = service
        self._held_s, self._held_at = 0.0, 0.0
        self._told_busy_s = -1.0
        self._reports: list[tuple[float, float]] = []

    @property
    def busy_share(self) -> float:
        """Share of the time between the first and the last report; a hold falls into a batch, so it counts
        as busy in the generator's own figures and is taken off both."""
        if len(self._reports) < 3:
            raise SystemExit("the generator has hardly reported: take longer blocks or more of them")
        # the very first was already there when the first block began
        (first_busy_s, first_s), (last_busy_s, last_s) = self._reports[1], self._reports[-1]
        return (last_busy_s - first_busy_s) / max(1e-9, last_s - first_s)

    def report(self) -> Any:
        """Poll the service; a death spoils the measurement."""
        report = self._service.poll()
        if report.num_deaths:
            raise SystemExit(f"the generator died: {report.messages}")
        return report

    def look(self) -> None:
        """Note the time whenever the generator has reported, between two steps of an online block."""
        busy_s, now = self.report().total("busy_s"), time.monotonic()
        if busy_s != self._told_busy_s:
            self._told_busy_s = busy_s
            self._reports.append((busy_s - self._held_s, now - self._held_s))

    def hold(self) -> None:
        """Let it stand still."""
        self._send(signal.SIGSTOP)
        self._held_at = time.monotonic()

    def go_on(self) -> None:
        """Let it draw on."""
        self._send(signal.SIGCONT)
        self._held_s += time.monotonic() - self._held_at

    @staticmethod
    def _send(number: signal.Signals) -> None:
        for process in multiprocessing.active_children():
            if process.name.startswith("mflight-"):
                os.kill(process.pid, number)


def compose_config(overrides: list[str], folder: Path) -> Any:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        fixed = [
            "synthesis.warmup_steps=0",
            "synthesis.cooldown_ratio=0",
            "data.num_workers=0",
            f"paths.run_dir={folder}",
        ]
        return compose("train", [*fixed, *overrides])


def check_ready_samples(cfg: Any, args: argparse.Namespace) -> None:
    """The ready pool must not run out of uses, or its arm would train on real images instead."""
    from hydra.utils import instantiate

    steps = args.warmup_steps + args.blocks * args.block_steps
    share = instantiate(cfg.datamodule.share)
    num_slots = sum(share.counts(step)[1] for step in range(steps))
    needed = math.ceil(num_slots / cfg.synthesis.max_reuse)
    if args.ready_samples < needed:
        raise SystemExit(
            f"--ready-samples must be at least {needed} for so many steps, got {args.ready_samples}"
        )


def start_generator(cfg: Any, pool: Path, cores: set[int]) -> Any:
    """Start the service while this process is on the generator's cores: its children stay there."""
    from hydra.utils import instantiate

    cfg.paths.pool_dir = str(pool)
    cfg.synthesis.num_threads = len(cores)
    if cfg.synthesis.devices == "auto":
        cfg.synthesis.devices = ["cpu"]
    os.sched_setaffinity(0, cores)
    service = instantiate(cfg.synthesis.service).build_service()
    service.start()
    return service


def warm_up(generator: Generator, num_samples: int) -> None:
    while (drawn := generator.report().total("accepted")) < num_samples:
        print(f"warm-up: {drawn:.0f} of {num_samples} samples", end="\r", flush=True)
        time.sleep(0.5)
    print()


def run_block(arm: Arm, detector: Detector, num_steps: int, generator: Generator | None) -> None:
    started = time.perf_counter()
    for _ in range(num_steps):
        detector.step(arm.next())
        if generator is not None:
            generator.look()
    arm.block_s.append(time.perf_counter() - started)


def measure(args: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, float]:
    """Warm up, run the blocks in turn, and return the figures of the RESULT line."""
    pool, ready_pool = folder / "pool", folder / "ready"
    check_ready_samples(compose_config(overrides, folder), args)
    service = start_generator(compose_config(overrides, folder), pool, set(args.generator_cores))
    try:
        os.sched_setaffinity(0, set(args.trainer_cores))
        import torch

        torch.set_num_threads(len(args.trainer_cores))
        generator = Generator(service)
        detector = Detector(compose_config(overrides, folder), args.device)
        warm_up(generator, args.ready_samples)
        generator.hold()
        shutil.copytree(pool, ready_pool)
        online = Arm(compose_config(overrides, folder), pool)
        ready = Arm(compose_config(overrides, folder), ready_pool)
        for arm in (online, ready):  # the first steps fill caches
            run_block(arm, detector, args.warmup_steps, None)
            arm.block_s.clear()
        before = (online.counts, online.asking_s)
        for block in range(args.blocks):
            order = (online, ready) if block % 2 == 0 else (ready, online)
            for arm in order:
                if arm is online:
                    generator.go_on()
                run_block(arm, detector, args.block_steps, generator if arm is online else None)
                generator.hold()
            print(f"block {block}: online {online.block_s[-1]:.2f} s, ready {ready.block_s[-1]:.2f} s")
        generator.go_on()
        return figures(args, online, ready, before, generator)
    finally:
        Generator(service).go_on()  # one that is held could not be told to stop
        service.stop()


def figures(
    args: argparse.Namespace, online: Arm, ready: Arm, before: tuple[Any, float], generator: Generator
) -> dict[str, float]:
    counts, (counts_before, asking_before) = online.counts, before
    fallbacks = counts.fallback - counts_before.fallback
    drawn = {name: getattr(counts, name) - getattr(counts_before, name) for name in ("fresh", "reused")}
    slots = fallbacks + sum(drawn.values())
    waited_s = online.asking_s - asking_before + counts.wait_s - counts_before.wait_s
    ratios = [b / a for a, b in zip(online.block_s, ready.block_s, strict=True)]
    return {
        "steps_ratio": statistics.median(ratios),
        "trainer_wait_share": waited_s / sum(online.block_s),
        "generator_busy_share": generator.busy_share,
        "fallback_share": fallbacks / max(1, slots),
        "steps_ratio_least": min(ratios),
        "steps_ratio_most": max(ratios),
        "online_steps_per_s": args.blocks * args.block_steps / sum(online.block_s),
        "ready_steps_per_s": args.blocks * args.block_steps / sum(ready.block_s),
        "online_fresh_share": drawn["fresh"] / max(1, slots),
        "ready_synthetic_share": ready.counts.synthetic_share,
        "online_synthetic_share": counts.synthetic_share,
        "images_drawn": generator.report().total("accepted"),
    }


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainer-cores", type=int, nargs="+", default=[0])
    parser.add_argument("--generator-cores", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cpu", help="of the detector; the generator's: synthesis.devices")
    parser.add_argument("--blocks", type=int, default=6, help="pairs of blocks")
    parser.add_argument("--block-steps", type=int, default=100)
    parser.add_argument("--warmup-steps", type=int, default=20)
    parser.add_argument("--ready-samples", type=int, default=64, help="drawn before anything is measured")
    return parser.parse_known_args()


def main() -> None:
    args, overrides = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, overrides, Path(folder))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    for name, value in result.items():
        print(f"{name:<24} {value:.4g}")
    facts = {"commit": commit.stdout.strip(), "cores": os.cpu_count(), "overrides": overrides}
    print("RESULT", json.dumps({name: float(f"{value:.4g}") for name, value in result.items()} | facts))


if __name__ == "__main__":
    main()
