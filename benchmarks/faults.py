"""What goes wrong in a long run, done on purpose: nothing may hang, crash, get lost or be overused, untold.

    python benchmarks/faults.py [--kinds worker_killed disk_full ...] [--trials N] [--seed 0]

Each trial has real processes, files and signals; `fault_trials.py` and `fault_runs.py` hold them. `hung`
counts trials that did not end in time, `crashed` those in which what should go on did not, `lost` samples
that were acknowledged or due and were not there in the end, `over_cap` samples used more often than their
cap, `untold` trials of which the user learns nothing. The last line is ``RESULT {json}``.
"""

import argparse
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before torch: processes are forked from the one that imports it
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from fault_trials import Outcome

NUM_TRIALS = {
    "worker_killed": 20,
    "trainer_killed": 10,
    "disk_full": 4,
    "shard_cut": 16,
    "index_cut": 16,
    "two_writers": 4,
    "dead_generator_on_two_ranks": 3,
}


def build_world(folder: Path) -> Path:
    """Draw the few images that the runs of train.py train on."""
    from mflight.minilvis.dataset import (  # not above: generators import this file
        MiniLVISSize,
        build_minilvis,
    )

    train_images = {"rare": (1, 1), "common": (2, 2), "frequent": (3, 3)}
    return build_minilvis(folder / "world", size=MiniLVISSize(train_images=train_images, val_instances=1))


def trial_of(kind: str, world: Path) -> Callable[[Path, random.Random, int], "Outcome"]:
    """Return what does one trial, given a new folder, its random numbers and its number."""
    import fault_runs
    import fault_trials

    if hasattr(fault_trials, kind):
        return getattr(fault_trials, kind)
    trial = getattr(fault_runs, kind)
    return lambda folder, draws, number: partial(trial, folder, world)(draws, number)


def run_trials(kind: str, num_trials: int, seed: int, folder: Path, world: Path) -> list["Outcome"]:
    """Do the trials of a kind, one after the other; an error of the reading side is a crash.

    A machine that does not allow the kind gives an empty list.
    """
    from fault_trials import Outcome, TrialSkippedError

    outcomes, trial = [], trial_of(kind, world)
    for number in range(num_trials):
        draws = random.Random(f"{seed}/{kind}/{number}")
        started = time.monotonic()
        try:
            outcome = trial(folder / f"{kind}-{number}", draws, number)
        except TrialSkippedError as reason:
            print(f"{kind}: skipped, {reason}", flush=True)
            return []
        except Exception as error:
            outcome = Outcome(crashed=True, note=f"{type(error).__name__}: {error}")
        outcomes.append(outcome)
        verdict = "clean" if outcome.is_clean else f"NOT CLEAN {outcome}"
        print(f"{kind} {number}: {verdict}, {time.monotonic() - started:.1f} s", flush=True)
    return outcomes


def summarise(outcomes: list["Outcome"]) -> dict[str, int]:
    """Count over the trials of a kind."""
    return {
        "trials": len(outcomes),
        "hung": sum(outcome.hung for outcome in outcomes),
        "crashed": sum(outcome.crashed for outcome in outcomes),
        "lost": sum(outcome.lost for outcome in outcomes),
        "over_cap": sum(outcome.over_cap for outcome in outcomes),
        "untold": sum(not outcome.told for outcome in outcomes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=list(NUM_TRIALS), default=list(NUM_TRIALS))
    parser.add_argument("--trials", type=int, help="of each kind; by default the numbers of the claim")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("mflight").setLevel(logging.ERROR)  # what is told here is counted
    result: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(Path(folder))
        for kind in args.kinds:
            num_trials = args.trials or NUM_TRIALS[kind]
            result[kind] = summarise(run_trials(kind, num_trials, args.seed, Path(folder), world))
    width = max(map(len, result))
    for kind, figures in result.items():
        print(f"{kind:<{width}}", "  ".join(f"{name} {value}" for name, value in figures.items()))
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
