"""Trials of `faults.py` with the real train.py: its small detector, its checkpoints, its ranks.

The processes are forked from one that has imported mflight already, so that a run takes seconds; what runs in
them is train.py as ``__main__``. A light synthesizer stands in for the diffusion model.
"""

import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from fault_trials import CAP, PATIENCE_S, Outcome

from mflight.synthesis.pool.index import PoolError
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.signals import WorkerStatus
from tests.run.batch_recorder import read_batches

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
NUM_STEPS, HIGH_WATER = 12, 12
LIGHT = [
    "data.prepare=null",
    "data.batch_size=4",
    "data.val_batch_size=1",
    "data.transform.crop_hw=[64,64]",
    "data.epoch_steps=6",
    "logger.wandb=null",
    "callbacks.panels=null",
    "callbacks.last.every_n_train_steps=3",
    "callbacks.synthesis.every_n_steps=1",
    "trainer.log_every_n_steps=1",
    "+callbacks.recorder._target_=tests.run.batch_recorder.BatchRecorder",
    "+callbacks.recorder.folder=${paths.run_dir}",
    f"synthesis.max_reuse={CAP}",
    "synthesis.warmup_steps=0",
    "synthesis.cooldown_ratio=0",
    "synthesis.mixing=replace",
    "synthesis.synthetic_ratio=0.5",
]
LIGHT_GENERATOR = [
    "synthesis.service.min_free_bytes=0",
    f"synthesis.service.high_water={HIGH_WATER}",
    "synthesis.images.poll_s=0.1",
    "~diffusion.synthesizer",
]


def light_synthesizer(**settings: object) -> str:
    """Return the override that lets rectangles be drawn."""
    pairs = {"_target_": "tests.unit.synthesis.squares.SquareSynthesizer", "device": "auto", **settings}
    return "+diffusion.synthesizer={" + ",".join(f"{key}:{value}" for key, value in pairs.items()) + "}"


class Run:
    """One train.py in a process of its own."""

    def __init__(self, run_dir: Path, world: Path, overrides: list[str], num_steps: int = NUM_STEPS):
        self.run_dir, self._output = run_dir, run_dir.with_suffix(".txt")
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        argv = [
            *LIGHT,
            f"data.root={world}",
            f"trainer.max_steps={num_steps}",
            f"hydra.run.dir={run_dir}",
            *overrides,
        ]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mflight.run"])
        self.process: BaseProcess = context.Process(target=_train, args=(argv, self._output))
        self.process.start()

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    @property
    def results(self) -> dict:
        return json.loads((self.run_dir / "results.json").read_text())

    @property
    def checkpoint(self) -> Path:
        return self.run_dir / "checkpoints" / "last.ckpt"

    def wait(self, patience_s: float = PATIENCE_S) -> int | None:
        """Return its exit code, or None if it does not end in time; then it is killed."""
        self.process.join(patience_s)
        if self.process.exitcode is None:
            self.kill()
            return None
        return self.process.exitcode

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that happens while it runs, or for its end."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.exitcode is None and not happened() and time.monotonic() < deadline:
            time.sleep(0.01)

    def kill(self) -> None:
        if self.process.exitcode is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def _train(argv: list[str], output: Path) -> None:
    """Be train.py with these overrides."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path.insert(0, str(TRAIN.parent))
    sys.argv = [str(TRAIN), *argv]
    runpy.run_path(str(TRAIN), run_name="__main__")


def trainer_killed(folder: Path, world: Path, draws: random.Random, number: int) -> Outcome:
    """SIGKILL a training at any moment, and resume it."""
    few_steps = "synthesis.max_fallback_ratio=1"  # they may end before a generator has drawn much
    overrides = [*LIGHT_GENERATOR, light_synthesizer(seconds=0.02), "trainer.limit_val_batches=1", few_steps]
    killed = Run(folder / "killed", world, overrides)
    if draws.random() < 0.1:
        time.sleep(draws.uniform(0.0, 3.0))
    else:
        step = draws.randrange(NUM_STEPS - 1)
        killed.wait_until(lambda: any(line["step"] >= step for line in read_batches(killed.run_dir)))
        time.sleep(draws.uniform(0.0, 0.2))
    killed.kill()
    if killed.process.exitcode == 0:
        return Outcome(crashed=True, note="the run ended before it was killed")
    generator = WorkerStatus.read(killed.run_dir / "pool", "w0").pid
    kept = num_steps_kept(killed.checkpoint)
    acknowledged = sample_ids(killed.run_dir / "pool")
    outcome = Outcome(hung=not ends(generator))
    again = folder / "resumed" if kept else killed.run_dir
    go_on = [f"resume_from={killed.run_dir}"] if kept else []
    history = [line for line in read_batches(killed.run_dir) if line["step"] < kept]
    seen = {name for line in read_batches(killed.run_dir) for name in line["synthetic"]}
    begun = 0 if kept else len(read_batches(killed.run_dir))
    resumed = Run(again, world, [*overrides, *go_on])
    exit_code = resumed.wait()
    if exit_code != 0:
        outcome.hung |= exit_code is None
        outcome.crashed, outcome.note = True, resumed.output[-600:]
        return outcome
    history += read_batches(again)[begun:]
    return _judge_history(outcome, history, resumed, seen, acknowledged, killed.run_dir / "pool", kept)


def _judge_history(
    outcome: Outcome,
    history: list[dict],
    resumed: Run,
    seen: set[str],
    acknowledged: set[str],
    pool: Path,
    kept: int,
) -> Outcome:
    uses = Counter(name for line in history for name in line["synthetic"])
    outcome.over_cap = sum(count > CAP for count in uses.values())
    steps = [line["step"] for line in history]
    figures = resumed.results
    if steps != list(range(NUM_STEPS)) or figures["steps"] != NUM_STEPS:
        outcome.crashed, outcome.note = True, f"steps {steps}"
    if figures["synthesis/fresh"] + figures["synthesis/reused"] != sum(uses.values()):
        outcome.crashed, outcome.note = True, f"counted {figures}, used {uses}"
    held = sample_ids(pool)
    outcome.lost = len(acknowledged - held) + num_gaps(pool)
    if len(held) > len(seen | uses.keys()) + HIGH_WATER + 1:
        outcome.crashed, outcome.note = True, f"a burst: {len(held)} samples, {len(seen | uses.keys())} used"
    outcome.told = not kept or f"goes on from {resumed_from(resumed)}" in " ".join(resumed.output.split())
    return outcome


def resumed_from(resumed: Run) -> Path:
    return resumed.run_dir.parent / "killed" / "checkpoints" / "last.ckpt"


def dead_generator_on_two_ranks(folder: Path, world: Path, draws: random.Random, number: int) -> Outcome:
    """The generator of two ranks fails at its first or third request, and is not started again.

    The run ends with status 2, on both ranks at the same step, when nothing is left to use or at its end;
    only where more than a tenth of the synthetic slots was filled until then may it end well.
    """
    error_at, wait, num_steps = [(0, True, 4), (2, True, 8), (0, False, 40)][number % 3]
    overrides = [
        *LIGHT_GENERATOR,
        light_synthesizer(error_at=error_at),
        "synthesis.service.max_restarts=0",
        "trainer.devices=2",
        f"synthesis.wait={str(wait).lower()}",
        "trainer.limit_val_batches=1",
    ]
    run = Run(folder / "two_ranks", world, overrides, num_steps)
    exit_code = run.wait()
    ranks = [read_batches(run.run_dir, rank) for rank in range(2)]
    uses = Counter(name for lines in ranks for line in lines for name in line["synthetic"])
    told = "error: no generator is left" in run.output or "this was no run with synthesis" in run.output
    is_well = exit_code == 0 and bool(uses)
    return Outcome(
        hung=exit_code is None,
        crashed=len(ranks[0]) != len(ranks[1]) or not (is_well or exit_code == 2),
        lost=len(sample_ids(run.run_dir / "pool") - uses.keys()) if wait else 0,
        over_cap=sum(count > CAP for count in uses.values()),
        told=(told or is_well) and "it is given up after 1 deaths" in run.output,
        note=f"exit {exit_code} after {len(ranks[0])} steps: {run.output[-900:]}",
    )


def num_steps_kept(checkpoint: Path) -> int:
    """Return how many steps a checkpoint holds; 0 if there is none. A torn one is an error."""
    if not checkpoint.exists():
        return 0
    return torch.load(checkpoint, map_location="cpu", weights_only=False)["global_step"]


def sample_ids(pool: Path) -> set[str]:
    """Return the samples that can be read."""
    reader, found = PoolReader(pool), set()
    for ref in reader.poll():
        try:
            found.add(reader.read(ref).sample_id)
        except PoolError:
            continue
    return found


def num_gaps(pool: Path) -> int:
    """Return how many requests before the last answered one nobody has answered."""
    reader = PoolReader(pool)
    answered = {ref.sample_id for ref in reader.poll()} | reader.ids("dropped")
    numbers = {int(name.rpartition("-")[2]) for name in answered}
    return max(numbers, default=-1) + 1 - len(numbers)


def ends(pid: int) -> bool:
    """Return whether a process is gone within seconds."""
    deadline = time.monotonic() + 20.0
    while pid and time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return not pid
