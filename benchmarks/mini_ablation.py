"""Does synthesis help the rare classes of MiniLVIS? The same steps with and without it, several seeds.

    python benchmarks/mini_ablation.py --seeds 0 1 2 [--output FILE.json] [HYDRA OVERRIDES ...]

Each run is `train.py` in a process of its own, one after the other: the online runs need both cores. Runs
found in --output are not made again. The last line is `RESULT {json}`: mean and spread (standard deviation
over the seeds) of the mask AP, APr, APc and APf, in percent.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("AP", "APr", "APc", "APf")
ARMS = {"real only": ["synthesis=none"], "online": []}


def run_once(arm: str, seed: int, overrides: list[str]) -> dict[str, float]:
    """Train once and return what the run wrote."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "train.py",
            *ARMS[arm],
            f"seed={seed}",
            f"hydra.run.dir={folder}",
            *overrides,
        ]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads((Path(folder) / "results.json").read_text())


def summarise(runs: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """Return, by arm and figure, mean and standard deviation over the seeds."""
    summary = {}
    for arm in ARMS:
        own = [run for name, run in runs.items() if name.startswith(f"{arm}/")]
        if own:
            values = {figure: [run[f"val/segm/{figure}"] for run in own] for figure in FIGURES}
            summary[arm] = {
                figure: [round(statistics.mean(v), 2), round(statistics.stdev(v), 2) if len(v) > 1 else 0.0]
                for figure, v in values.items()
            }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--output", type=Path)
    args, overrides = parser.parse_known_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    record = {
        "commit": commit.stdout.strip(),
        "machine": platform.processor() or platform.machine(),
        "runs": {},
    }
    if args.output and args.output.exists():
        record = json.loads(args.output.read_text())
    for seed in args.seeds:
        for arm in args.arms:
            name = f"{arm}/{seed}"
            if name not in record["runs"]:
                record["runs"][name] = run_once(arm, seed, overrides)
                print(name, {f: round(record["runs"][name][f"val/segm/{f}"], 2) for f in FIGURES}, flush=True)
                if args.output:
                    args.output.write_text(json.dumps(record, indent=1) + "\n")
    summary = summarise(record["runs"])
    for arm, figures in summary.items():
        print(
            f"{arm:<10}",
            "  ".join(f"{name} {mean:5.1f} ± {spread:.1f}" for name, (mean, spread) in figures.items()),
        )
    print("RESULT", json.dumps(summary))


if __name__ == "__main__":
    main()
