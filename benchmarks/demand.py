"""Does feedback help? The paper's static rule against adaptive demand on MiniLVIS, as many images from each.

    python benchmarks/demand.py [--seeds 0 1 2] [--steps 700] [--reuse 8] [--output FILE.json] [OVERRIDES ...]

Each run is `train.py` in a process of its own, one after the other: the online runs need both cores. Runs
found in --output are not made again. What makes the comparison fair:

- Both arms draw exactly N images and use each exactly R = --reuse times: N = synthetic slots of the run / R,
  `synthesis.service.num_samples=N`, `synthesis.max_reuse=R`, and `synthesis.wait=true`, so that the trainer
  waits for a sample rather than taking a real image. A run that drew another number of images, or that
  differs from its twin in any count of slots, ends the benchmark with an error.
- Where the generator is the slower one, as on two cores, the waiting paces both: a sample is drawn when it is
  needed, from the demand of about then. It never runs more than --ahead unused samples ahead.
- Dropped canvases are not counted: the arms may need different numbers of requests for N images; the RESULT
  tells how many, and how many instances of each frequency group came of them.
- Seeds, steps, data, detector and filter are the same. The adaptive arm sees the AP of each class on the
  validation images at each validation, so their figures are not held out from it; the arm `adaptive without
  AP` (`--arms`) sees nothing of the validation.

The last line is `RESULT {json}`: by arm, mean and spread (standard deviation over the seeds) of the mask AP,
APr, APc and APf in percent, and the same of the difference to the static arm, seed by seed.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mflight.data.mixing import num_synthetic_slots  # noqa: E402
from mflight.minilvis.species import SPECIES  # noqa: E402
from mflight.synthesis.pool.folder import PoolReader  # noqa: E402

FIGURES = ("AP", "APr", "APc", "APf")
STATIC = "static"
ARMS = {
    STATIC: ["synthesis.planner.rule=published"],
    "adaptive": ["synthesis.planner.rule=adaptive"],
    "adaptive without AP": ["synthesis.planner.rule=adaptive", "synthesis.demand.ap_power=0"],
    "inverse frequency": ["synthesis.planner.rule=inverse_frequency"],
}
SLOTS = ("real", "fresh", "reused", "fallback")


def count_images(steps: int, warmup_steps: int, ratio: float, batch_size: int, reuse: int) -> int:
    """Return N: so many images, each used ``reuse`` times, fill the synthetic slots of a run."""
    slots = sum(num_synthetic_slots(step, batch_size, ratio, warmup_steps) for step in range(steps))
    if slots < reuse:
        raise SystemExit(f"--steps {steps} have {slots} synthetic slots, fewer than --reuse {reuse}")
    return slots // reuse


def run_once(arm: str, seed: int, num_images: int, args: argparse.Namespace) -> dict[str, float]:
    """Train once; return figures and counts, and end if the pool holds another number of images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "train.py",
            *ARMS[arm],
            f"seed={seed}",
            f"hydra.run.dir={folder}",
            f"trainer.max_steps={args.steps}",
            f"data.epoch_steps={args.epoch_steps}",
            f"data.batch_size={args.batch_size}",
            f"synthesis.synthetic_ratio={args.ratio}",
            f"synthesis.warmup_steps={args.warmup_steps}",
            f"synthesis.max_reuse={args.reuse}",
            "synthesis.wait=true",
            f"synthesis.service.high_water={args.ahead}",
            f"++synthesis.service.num_samples={num_images}",
            *args.overrides,
        ]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{arm}, seed {seed}: train.py ended with {done.returncode}\n{done.stdout}")
        results = json.loads((Path(folder) / "results.json").read_text())
        drawn = describe_pool(Path(folder) / "pool")
    if drawn["images"] != num_images:
        raise SystemExit(f"{arm}, seed {seed}: {num_images} images were to be drawn, got {drawn['images']}")
    kept = {f"val/segm/{name}": results[f"val/segm/{name}"] for name in FIGURES}
    return kept | {name: results[f"synthesis/{name}"] for name in SLOTS[1:]} | drawn


def describe_pool(folder: Path) -> dict[str, float]:
    """Return how many images a pool holds, how many requests they took, and instances by frequency group."""
    reader = PoolReader(folder)
    images = len(reader.poll())
    frequencies = {species.category_id: species.frequency for species in SPECIES}
    groups: Counter[str] = Counter()
    for category_id, count in reader.acceptance.num_kept.items():
        groups[frequencies.get(category_id, "other")] += count
    return {"images": images, "requests": images + len(reader.dropped_ids), "instances": dict(groups)}


def summarise(runs: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """Return, by arm, mean and spread of each figure, and of its difference to the static arm's same seed."""
    summary: dict[str, dict[str, list[float]]] = {}
    for arm in ARMS:
        own = {name.split("/")[1]: run for name, run in runs.items() if name.split("/")[0] == arm}
        if not own:
            continue
        summary[arm] = {}
        for figure in FIGURES:
            key = f"val/segm/{figure}"
            summary[arm][figure] = mean_and_spread([run[key] for run in own.values()])
            twins = [seed for seed in own if f"{STATIC}/{seed}" in runs]
            if arm != STATIC and twins:
                gains = [own[seed][key] - runs[f"{STATIC}/{seed}"][key] for seed in twins]
                summary[arm][f"{figure} gain"] = mean_and_spread(gains)
        for count in ("images", "requests", "fresh", "reused", "fallback"):
            summary[arm][count] = round(statistics.mean(run[count] for run in own.values()), 1)
    return summary


def mean_and_spread(values: list[float]) -> list[float]:
    """Return mean and standard deviation, rounded."""
    return [
        round(statistics.mean(values), 2), round(statistics.stdev(values), 2) if len(values) > 1 else 0.0
    ]  # fmt: skip


def check_equal(runs: dict[str, dict], seed: int) -> None:
    """End if the arms of a seed did not train on as many images of each kind."""
    counts = {
        name: [run["images"], run["fresh"] + run["reused"], run["fallback"]]
        for name, run in runs.items()
        if name.endswith(f"/{seed}")
    }
    if len({str(count) for count in counts.values()}) > 1:
        raise SystemExit(f"the arms must have equal images drawn, uses and fallbacks, got {counts}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=[STATIC, "adaptive"])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--epoch-steps", type=int, default=100, help="between two validations")
    parser.add_argument("--reuse", type=int, default=8, help="uses of each image")
    parser.add_argument("--ahead", type=int, default=4, help="unused images at which the generator pauses")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--output", type=Path)
    args, args.overrides = parser.parse_known_args()
    return args


def main() -> None:
    args = parse_args()
    num_images = count_images(args.steps, args.warmup_steps, args.ratio, args.batch_size, args.reuse)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    record = {
        "commit": commit.stdout.strip(),
        "machine": platform.processor() or platform.machine(),
        "settings": {**vars(args), "output": None, "arms": None, "seeds": None},
        "runs": {},
    }
    if args.output and args.output.exists():
        found = json.loads(args.output.read_text())
        if found["settings"] != record["settings"]:
            raise SystemExit(f"--output holds runs of {found['settings']}, not of {record['settings']}")
        record = found
    for seed in args.seeds:
        for arm in args.arms:
            name = f"{arm}/{seed}"
            if name not in record["runs"]:
                record["runs"][name] = run_once(arm, seed, num_images, args)
                if args.output:
                    args.output.write_text(json.dumps(record, indent=1) + "\n")
            run = record["runs"][name]
            print(name, {figure: round(run[f"val/segm/{figure}"], 2) for figure in FIGURES}, end=" ")
            print({key: run[key] for key in ("images", "requests", "instances", *SLOTS[1:])}, flush=True)
        check_equal(record["runs"], seed)
    summary = summarise(record["runs"])
    for arm, figures in summary.items():
        lines = [
            f"{name} {value[0]:5.1f} ± {value[1]:.1f}" for name, value in figures.items() if name in FIGURES
        ]
        print(f"{arm:<20}", "  ".join(lines))
    facts = {
        "commit": record["commit"],
        "machine": record["machine"],
        "seeds": args.seeds,
        "steps": args.steps,
    }
    print("RESULT", json.dumps({**facts, "num_images": num_images, "reuse": args.reuse, "arms": summary}))


if __name__ == "__main__":
    main()
