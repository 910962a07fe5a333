"""What synthesis gives and costs on MiniLVIS: named rows of settings, several seeds, every run kept at once.

    python benchmarks/minilvis.py [ROW ...] [--seeds 0 1 2] [--steps 1400] [--jobs 1] [--list]
    python benchmarks/minilvis.py --add ROW STEPS SEED RUN_FOLDER --commit HASH

Each run is `train.py` in a process of its own; on a CPU two that draw nothing go side by side. A run that
benchmarks/results/minilvis.json holds is not made again, and one that was stopped goes on. `--add` takes over
a run folder that was made elsewhere. The last line is `RESULT {json}`: the rows, with mean and standard
deviation over the seeds, in percent.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from drawn_pool import draw_pool
from hydra import compose, initialize_config_dir

from mflight.compare import FIGURES, mean_and_spread
from mflight.proof.arms import equal_time_steps
from mflight.proof.runs import Run
from mflight.proof.schedule import RunFailedError, all_cores, divide_machine, hardware, run_all, visible_gpus
from mflight.training.compared_runs import settings_of

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "minilvis.json"
FIXED = ["callbacks.panels=null", "logger.wandb=null"]
DRAWN_POOL = "DRAWN_POOL"  # filled by MiniLVIS's own painter: what a perfect generator would give
REPLACE = ["synthesis.mixing=replace", "synthesis.cooldown_ratio=0", "synthesis.background_loss=true"]
ATTENTION, LABELER = "diffusion.synthesizer.attention", "diffusion.synthesizer.labeler"

ROWS: dict[str, list[str]] = {
    # the accounts
    "real_only": ["synthesis=none"],
    "real_only_equal_images": ["synthesis=control"],
    "real_only_equal_time": ["synthesis=none"],  # as many steps as `online` and `real_only` of the seed tell
    "online": [],
    # others' ways
    "replace": [*REPLACE, "synthesis.synthetic_ratio=0.07"],
    "paste": [*REPLACE[:2], "synthesis/paste=x_paste", "synthesis.synthetic_ratio=1"],
    "copy_paste": ["synthesis=none", "data/copy_paste=simple"],
    "loss": ["synthesis=none", "model/classification_loss=federated"],
    "best": ["model/classification_loss=federated"],
    # what is mixed, and how
    "replace_25": [*REPLACE, "synthesis.synthetic_ratio=0.25"],
    "background_learnt": ["synthesis.background_loss=true"],
    "no_cooldown": ["synthesis.cooldown_ratio=0"],
    "repeat_factors_mixed": ["synthesis.repeat_factors=mixed"],
    "partners_rare": ["synthesis.planner.partner_frequencies=[rare]"],
    "partners_rare_common": ["synthesis.planner.partner_frequencies=[rare,common]"],
    "all_classes": ["synthesis.planner.main_frequencies=[rare,common,frequent]"],
    "inverse_frequency": ["synthesis.planner.rule=inverse_frequency"],
    "paste_in_slots": ["synthesis/paste=x_paste"],
    "scale_25": ["synthesis.scale_range=[0.25,1.0]"],
    "scale_50": ["synthesis.scale_range=[0.5,1.0]"],
    "classification_only": ["synthesis.losses=[classification]"],
    "loss_weight_50": ["synthesis.loss_weight=0.5"],
    "verified": ["callbacks.detector_check.min_score=0.1", "callbacks.detector_check.from_step=400"],
    "seesaw": ["model/classification_loss=seesaw"],
    "eqlv2": ["model/classification_loss=eqlv2"],
    "drawn_pool": ["synthesis=replay", "synthesis.background_loss=true", f"paths.pool_dir={DRAWN_POOL}"],
    "drawn_pool_no_background": ["synthesis=replay", f"paths.pool_dir={DRAWN_POOL}"],
    # the paper's ablations
    "regions_1": ["synthesis.planner.num_regions=[1]"],
    "regions_2": ["synthesis.planner.num_regions=[2]"],
    "no_jitter": ["synthesis.planner.center_ratio_range=[1.0,1.0]"],
    "no_overlap": ["diffusion.overlap_hw=[0,0]"],
    "prompt_name": ["diffusion.prompt_builder.templates=['a photo of a single {name}, on {background}']"],
    "attention_level_0": [f"{ATTENTION}.levels=[0]"],
    "attention_level_1": [f"{ATTENTION}.levels=[1]"],
    "attention_level_2": [f"{ATTENTION}.levels=[2]"],
    "attention_late": [f"{ATTENTION}.first_evaluation=10"],
    "attention_early": [f"{ATTENTION}.stop_evaluation=10"],
    # and those that nobody has published
    "threshold_50": [f"{LABELER}.threshold=0.5"],
    "no_bilateral": [f"{LABELER}.num_bilateral_passes=0"],
    "inference_steps_5": ["diffusion.synthesizer.num_inference_steps=5"],
    "inference_steps_10": ["diffusion.synthesizer.num_inference_steps=10"],
    "inference_steps_40": ["diffusion.synthesizer.num_inference_steps=40"],
    "ratio_3": ["synthesis.synthetic_ratio=0.03"],
    "ratio_10": ["synthesis.synthetic_ratio=0.1"],
    "ratio_35": ["synthesis.synthetic_ratio=0.35"],
    "ratio_50": ["synthesis.synthetic_ratio=0.5"],
    "reuse_1": ["synthesis.max_reuse=1"],
    "reuse_4": ["synthesis.max_reuse=4"],
    "reuse_36": ["synthesis.max_reuse=36"],
    "samples_25": ["synthesis.service.num_samples=25", "synthesis.max_reuse=1000"],
    "samples_50": ["synthesis.service.num_samples=50", "synthesis.max_reuse=1000"],
    "samples_100": ["synthesis.service.num_samples=100", "synthesis.max_reuse=1000"],
    "rescue": ["diffusion.synthesizer.region_filter.rescue=true"],
}


class Record:
    """The runs that are made, in a file that is written after each of them."""

    def __init__(self, file: Path):
        self._file = file
        self.runs: dict[str, dict[str, Any]] = json.loads(file.read_text())["runs"] if file.is_file() else {}

    def add(self, key: str, results: dict[str, Any], facts: dict[str, Any]) -> None:
        """Keep a run, and write the file in one piece."""
        figures = {
            f"{kind}_{name}": round(results[f"val/{kind}/{name}"], 3)
            for kind in ("segm", "bbox")
            for name in FIGURES
        }
        kept = {name: results[name] for name in ("steps", "num_ranks", "train_s") if name in results}
        drawn = {name: value for name, value in results.items() if name.startswith("synthesis/")}
        self.runs[key] = {
            **facts,
            **kept,
            "figures": figures,
            "images_generated": drawn.get("synthesis/images", 0),
            **drawn,
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps({"runs": self.runs, "rows": self.rows()}, indent=1) + "\n")
        os.replace(draft, self._file)

    def rows(self) -> list[dict[str, Any]]:
        """Return mean and standard deviation over the seeds, for each row and number of steps."""
        groups: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
        for key, run in self.runs.items():
            name, steps, seed = key.split("/")
            groups.setdefault((name, int(steps)), {})[int(seed)] = run
        return [_row(name, steps, runs) for (name, steps), runs in groups.items()]


def _row(name: str, steps: int, runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "seeds": sorted(runs), "steps": steps}
    for figure in next(iter(runs.values()))["figures"]:
        row[f"{figure}_mean"], row[f"{figure}_std"] = mean_and_spread(
            [run["figures"][figure] for run in runs.values()]
        )
    for fact in ("images_generated", "wall_s", "train_s"):
        row[fact], _ = mean_and_spread([run[fact] for run in runs.values() if run.get(fact) is not None])
    return row


def make_run(name: str, steps: int, seed: int, folder: Path, record: Record) -> Run:
    """Describe the run of a row; that of equal machine time needs the two that tell how long that is."""
    trained_steps = steps
    if name == "real_only_equal_time":
        keys = [f"{other}/{steps}/{seed}" for other in ("real_only", "online")]
        lacking = [key for key in keys if "train_s" not in record.runs.get(key, {})]
        if lacking:
            raise SystemExit(
                f"real_only_equal_time needs the machine time of {', '.join(lacking)}: make these first"
            )
        trained_steps = equal_time_steps(*(record.runs[key] for key in keys))
    drawn = str(folder / "drawn_pool")
    overrides = [override.replace(DRAWN_POOL, drawn) for override in ROWS[name]]
    if overrides != ROWS[name] and not (folder / "drawn_pool" / "pool.db").is_file():
        draw_pool(folder / "drawn_pool")
    overrides = [*overrides, *FIXED, f"trainer.max_steps={trained_steps}", f"seed={seed}"]
    cfg = compose("train", overrides)
    run_folder = folder / name / str(steps) / str(seed)
    run = Run(name, seed, run_folder, tuple(overrides), settings_of(cfg), cfg.synthesis.service is not None)
    run.check_folder()
    return run


def make_rows(args: argparse.Namespace, record: Record) -> None:
    """Train what the record lacks: first the rows that do not depend on others."""
    places = divide_machine(cores=all_cores(), gpus=visible_gpus(), jobs=args.jobs)
    for names in (set(args.rows) - {"real_only_equal_time"}, set(args.rows) & {"real_only_equal_time"}):
        wanted = [(name, seed) for seed in args.seeds for name in ROWS if name in names]
        runs = [
            make_run(name, args.steps, seed, args.folder, record)
            for name, seed in wanted
            if f"{name}/{args.steps}/{seed}" not in record.runs
        ]

        def keep(run: Run, wall_s: float) -> None:
            facts = {
                "commit": ", ".join(run.commits),
                "command": run.command,
                "hardware": hardware(),
                "wall_s": round(wall_s, 1),
            }
            record.add(f"{run.arm}/{args.steps}/{run.seed}", run.results, facts)

        for run in runs:
            if run.is_finished:  # stopped between its end and the record
                keep(run, run.results["train_s"])
        with tempfile.TemporaryFile() as lock:
            runs = sorted(runs, key=lambda run: not run.draws)
            run_all(
                runs, places, lambda line: print(line, flush=True), lock=lock.fileno(), note_finished=keep
            )


def add_run(name: str, steps: str, seed: str, folder: Path, args: argparse.Namespace, record: Record) -> None:
    """Take over a run that was made elsewhere, with the command that its folder tells."""
    hydra = yaml.safe_load((folder / ".hydra" / "hydra.yaml").read_text())["hydra"]
    overrides = [each for each in hydra["overrides"]["task"] if not each.startswith(("paths.", "hydra."))]
    results = json.loads((folder / "results.json").read_text())
    facts = {
        "commit": args.commit,
        "command": " ".join(["python train.py", *overrides]),
        "hardware": hardware(),
    }
    record.add(f"{name}/{int(steps)}/{int(seed)}", results, {**facts, "wall_s": args.wall_s})


def print_table(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        cells = []
        for figure in FIGURES:
            mean, std = row[f"segm_{figure}_mean"], row[f"segm_{figure}_std"]
            cells.append(f"{figure} {mean:5.1f}" + (f" ± {std:4.1f}" if std is not None else " " * 7))
        print(f"{row['name']:<26} {row['steps']:>5} steps, {len(row['seeds'])} seeds  {'  '.join(cells)}")


@contextlib.contextmanager
def config_of_train() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="some of --list")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--jobs", type=int, default=1, help="parts of the machine")
    parser.add_argument("--list", action="store_true", help="print the rows and their overrides")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "minilvis", help="of the run folders")
    parser.add_argument("--output", type=Path, default=RECORD)
    parser.add_argument("--add", nargs=4, metavar=("ROW", "STEPS", "SEED", "RUN_FOLDER"))
    parser.add_argument("--commit", help="of --add")
    parser.add_argument("--wall-s", type=float, help="of --add: seconds that it took")
    args = parser.parse_args()
    unknown = sorted({*args.rows, *(args.add or [])[:1]} - set(ROWS))
    if unknown:
        parser.error(f"ROW must be one of --list, got {', '.join(unknown)}")
    if args.add and not args.commit:
        parser.error("--add needs --commit, that of the code which made the run")
    return args


def main() -> None:
    args = parse_arguments()
    record = Record(args.output)
    if args.list:
        for name, overrides in ROWS.items():
            print(f"{name:<26} {' '.join(overrides)}")
        return
    if args.add:
        name, steps, seed, folder = args.add
        add_run(name, steps, seed, Path(folder), args, record)
    try:
        with config_of_train():
            make_rows(args, record)
    except (RunFailedError, ValueError) as error:
        sys.exit(f"{error}\nthe same command goes on")
    print_table(record.rows())
    print("RESULT", json.dumps(record.rows()))


if __name__ == "__main__":
    main()
