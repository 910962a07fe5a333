"""Did the generated images help, and what did they cost the other classes? On your own data and detector.

python -m mflight.prove                                          MiniLVIS
python -m mflight.prove 'seeds=[0,1]' trainer.max_steps=300      shorter
python -m mflight.prove data=lvis_format data.root=... [any other override of train.py]

Each arm is trained with each seed, in a run folder as `train.py` leaves it: with synthesis, and on real
images alone with as many real images, with as many images, and with as much machine time. The answer stands
in `proof.html` and `proof.json`. The same command goes on after a stop; what is finished is never repeated.
"""

import fcntl
import json
import logging
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from mflight.data.files import DATASET_KEYS, require_dataset
from mflight.mistakes import Mistake, tells_mistakes
from mflight.proof.arms import (
    SYNTHESIS,
    Arm,
    build_arms,
    equal_time_arm,
    equal_time_steps,
    sets_key,
    training_overrides,
)
from mflight.proof.difference import account_answer, answer
from mflight.proof.page import proof_to_html
from mflight.proof.record import build_record
from mflight.proof.runs import Run
from mflight.proof.schedule import RunFailedError, all_cores, divide_machine, hardware, run_all, visible_gpus
from mflight.synthesis.pool.index import holds_pool
from mflight.training.compared_runs import settings_of

RECORD_FILE, PAGE_FILE, _LOCK_FILE = "proof.json", "proof.html", ".lock"
_CONFIG_PATH = str(Path(__file__).resolve().parents[1] / "conf")
_WAIT_FOR_EARLIER_S = 150.0
_EXAMPLES = {"seeds": "[0,1,2]", "accounts": "[equal_real]"}


class Proof:
    """The runs of a proof, made and checked from its config before anything is trained.

    Args:
        cfg: as ``conf/prove.yaml`` composes it.
        task_overrides: its command line.

    Raises:
        ValueError: if a setting breaks its rule, or a folder holds another proof's run.
    """

    def __init__(self, cfg: DictConfig, task_overrides: Sequence[str]):
        self.seeds, self.accounts = (_listed(cfg, key) for key in ("seeds", "accounts"))
        if not all(isinstance(seed, int) for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be whole numbers, each once, got {self.seeds}")
        self.folder = Path(cfg.output).absolute()
        self.command = shlex.join(["python", "-m", "mflight.prove", *task_overrides])
        self._overrides = training_overrides(task_overrides)
        self.cfg = compose("train", [*self._overrides, "paths.run_dir=."])
        arms = build_arms(self._overrides, self.cfg, self.accounts)
        self._check()
        self.runs = {arm.name: [self._run(arm, seed) for seed in self.seeds] for arm in arms}
        for run in self.all_runs:
            run.check_folder()

    @property
    def all_runs(self) -> list[Run]:
        """The runs in the order in which they are made: first those that draw, then seed by seed."""
        first, *others = self.runs.values()
        return [*first, *(run for of_a_seed in zip(*others, strict=True) for run in of_a_seed)]

    @property
    def has_equal_time(self) -> bool:
        """Whether there is an account whose steps are known after other runs only."""
        return "equal_time" in self.accounts

    @property
    def pools(self) -> list[Path]:
        """The pools that the runs with synthesis train from."""
        if self.cfg.synthesis.service is None:
            return [Path(self.cfg.paths.pool_dir)]
        return [run.folder / "pool" for run in self.runs[SYNTHESIS]]

    def add_equal_time(self) -> None:
        """Make the runs of equal machine time, once those that tell how long that is are finished."""
        self.runs["equal_time"] = []
        for real, ours, seed in zip(self.runs["real_only"], self.runs[SYNTHESIS], self.seeds, strict=True):
            steps = equal_time_steps(real.results, ours.results)
            run = self._run(equal_time_arm(self._overrides, self.cfg, steps), seed)
            run.check_folder()
            self.runs["equal_time"].append(run)

    def _check(self) -> None:
        if self.cfg.data.prepare is None:
            require_dataset({key: self.cfg.data[key] for key in DATASET_KEYS})
        pool = self.cfg.paths.pool_dir
        if self.cfg.synthesis.service is None:
            if not holds_pool(pool):
                raise FileNotFoundError(f"synthesis=replay needs a pool, paths.pool_dir={pool} holds none")
        elif sets_key(self._overrides, "paths.pool_dir"):
            raise ValueError(
                f"paths.pool_dir={pool} is for synthesis=replay: each run that draws has a pool of its own"
            )
        if not self.cfg.callbacks.get("timer"):
            raise ValueError("a proof needs callbacks.timer, which measures the training, got null")

    def _run(self, arm: Arm, seed: int) -> Run:
        overrides = (*arm.overrides, f"seed={seed}")
        settings = settings_of(compose("train", list(overrides)))
        return Run(arm.name, seed, self.folder / arm.name / f"seed_{seed}", overrides, settings, arm.draws)


def _listed(cfg: DictConfig, key: str) -> list[Any]:
    if not isinstance(cfg[key], ListConfig) or not cfg[key]:
        raise ValueError(f"{key} must be a list, such as {key}={_EXAMPLES[key]}, got {cfg[key]}")
    return list(cfg[key])


def prove(proof: Proof, jobs: int | str) -> dict[str, Any]:
    """Train what is not finished, and write ``proof.json`` and ``proof.html``.

    Args:
        proof: its runs.
        jobs: of ``divide_machine``.

    Returns:
        What ``proof.json`` holds.
    """
    places = divide_machine(cores=all_cores(), gpus=visible_gpus(), jobs=jobs)
    _tell_plan(proof)
    with _sole_owner(proof.folder) as lock:
        run_all(proof.all_runs, places, _tell, lock=lock)
        if proof.has_equal_time:
            proof.add_equal_time()
            run_all(proof.all_runs, places, _tell, lock=lock)
    record = {
        "name": proof.cfg.name,
        **build_record(proof.runs, proof.accounts, proof.pools),
        "seeds": proof.seeds,
        "commit": ", ".join(dict.fromkeys(commit for run in proof.all_runs for commit in run.commits)),
        "hardware": hardware(),
        "commands": [proof.command, *(run.command for run in proof.all_runs)],
    }
    record = {"answer": answer(record), **record}
    (proof.folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
    (proof.folder / PAGE_FILE).write_text(proof_to_html(record, proof.pools), encoding="utf-8")
    return record


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _tell_plan(proof: Proof) -> None:
    arms = [*proof.runs, *(["equal_time (its steps follow from the others)"] if proof.has_equal_time else [])]
    finished = [run.name for run in proof.all_runs if run.is_finished]
    print(f"proof {proof.folder}: {len(arms) * len(proof.seeds)} runs")
    print(f"  seeds: {', '.join(map(str, proof.seeds))}")
    print(f"  arms: {', '.join(arms)}")
    print(f"  finished already: {'; '.join(finished) or 'none'}", flush=True)


@contextmanager
def _sole_owner(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; the trainings hold it too, so that those of a killed proof end first."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("w") as file:
        deadline, is_told = time.monotonic() + _WAIT_FOR_EARLIER_S, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Mistake(f"another proof is at work in {folder}") from None
                if not is_told:
                    _tell("waiting for the trainings of an earlier call to end")
                    is_told = True
                time.sleep(0.5)
        yield file.fileno()


def _end_by_sigterm(*_: object) -> None:
    print("stopped by SIGTERM; the same command goes on", file=sys.stderr)
    sys.exit(128 + signal.SIGTERM)


@tells_mistakes
@hydra.main(version_base="1.3", config_path=_CONFIG_PATH, config_name="prove")
@tells_mistakes
def main(cfg: DictConfig) -> None:
    """Run the command with ``conf/prove.yaml`` and its overrides."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _end_by_sigterm)
    OmegaConf.set_struct(cfg, True)
    proof = Proof(cfg, HydraConfig.get().overrides.task)
    try:
        record = prove(proof, cfg.jobs)
    except RunFailedError as error:
        print(f"{error}\nthe same command goes on with the rest", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    print(f"\n{record['answer']}")
    for account in record["accounts"]:
        print(f"  {account}: {account_answer(record['accounts'][account]['difference'])}")
    print(f"Written: {proof.folder / PAGE_FILE}, {proof.folder / RECORD_FILE}")


if __name__ == "__main__":
    main()
