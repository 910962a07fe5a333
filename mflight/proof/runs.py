"""One training of a proof: its folder, its process, what it has left there. No torch."""

import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mflight.synthesis.process_start import environment
from mflight.training.compared_runs import CONFIG_FILE, RESULTS_FILE, differing_settings, read_settings

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
_CONSOLE_FILE, _COMMITS_FILE = "console.txt", "commits.txt"
_LAST_RESULT = "per_class.csv"  # what a run writes before it is whole once this is there
_STOP_S = 120.0
_NUM_LAST_LINES = 12
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Share:
    """A part of the machine for one process and all that it starts.

    Attributes:
        cores: numbers of its CPU cores.
        gpus: as ``CUDA_VISIBLE_DEVICES`` names them; empty on a machine without.
    """

    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training of an arm with one seed.

    Attributes:
        arm: its name.
        seed: of the training.
        folder: its run folder.
        overrides: of ``conf/train.yaml``, without the folder.
        settings: value by key, leaf by leaf, as these overrides compose them.
        draws: whether generators run beside the training.
    """

    arm: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    settings: Mapping[str, str] = field(repr=False, compare=False)
    draws: bool = False

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether it has left its results, all of them."""
        return (self.folder / _LAST_RESULT).is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether it has been begun and can go on."""
        return self._last_checkpoint.is_file()

    @property
    def results(self) -> dict[str, Any]:
        """What ``results.json`` tells."""
        return json.loads((self.folder / RESULTS_FILE).read_text())

    @property
    def commits(self) -> list[str]:
        """The commits that it was begun and gone on with."""
        file = self.folder / _COMMITS_FILE
        return list(dict.fromkeys(file.read_text().split())) if file.is_file() else []

    @property
    def command(self) -> str:
        """The command line that makes it, for a shell."""
        return shlex.join(["python", TRAIN.name, *self.overrides, _assign("hydra.run.dir", self.folder)])

    def check_folder(self) -> None:
        """Raise a ValueError if the folder holds a run of other settings, or something else."""
        if not (self.folder / CONFIG_FILE).is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()) and not self._console.is_file():
                raise ValueError(f"{self.folder} holds something else than a run: name another output=FOLDER")
            return
        found = read_settings(self.folder)
        keys = differing_settings(found, self.settings)
        if keys:
            before, now = found.get(keys[0], "nothing"), self.settings.get(keys[0], "nothing")
            more = f" (and {len(keys) - 1} more keys)" if len(keys) > 1 else ""
            raise ValueError(
                f"{self.folder} holds a run with {keys[0]}={before}, this proof asks for {now}{more}: name "
                "another output=FOLDER, or remove that one"
            )

    def prepare(self) -> tuple[str, ...]:
        """Make the folder ready for a start, and return the overrides: to go on, or to begin anew."""
        if not self.has_checkpoint:
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing in it can be gone on with
            return self.overrides
        log = self.folder / "csv" / "metrics.csv"
        if log.is_file():  # Lightning's logger would delete it
            number = len(list(self.folder.glob("csv_before_*.csv")))
            log.replace(self.folder / f"csv_before_{number}.csv")
        return (*self.overrides, _assign("resume_from", self.folder))

    def start(self, share: Share, *, pass_fds: Sequence[int]) -> "TrainingProcess":
        """Start it or go on with it.

        Args:
            share: of the machine.
            pass_fds: open files that the process is to hold as long as it lives.

        Returns:
            The process.
        """
        process = TrainingProcess(self.prepare(), self.folder, share, pass_fds=pass_fds)
        with (self.folder / _COMMITS_FILE).open("a") as file:
            file.write(f"{commit()}\n")
        return process

    @property
    def _console(self) -> Path:
        return self.folder / _CONSOLE_FILE

    @property
    def _last_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"


class TrainingProcess:
    """``train.py`` in a process of its own, which ends with this one, however that ends (on Linux).

    What it prints goes to ``console.txt`` in its run folder.

    Args:
        overrides: of ``conf/train.yaml``.
        folder: the run folder.
        share: of the machine; an empty part leaves it all.
        pass_fds: open files that the process is to hold as long as it lives.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        folder: Path,
        share: Share,
        *,
        pass_fds: Sequence[int],
    ):
        self._console = folder / _CONSOLE_FILE
        self._started_at = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        named_gpus = {"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if share.gpus else {}
        with self._console.open("ab") as output, environment(named_gpus):
            self._process = subprocess.Popen(
                [sys.executable, str(TRAIN), *overrides, _assign("hydra.run.dir", folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the proof, which then ends its trainings
                pass_fds=pass_fds,
                preexec_fn=lambda: _enter(share),
            )

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started_at

    def poll(self) -> int | None:
        """Return the exit status, or ``None`` while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end; return the exit status."""
        return self._process.wait()

    def terminate(self) -> None:
        """Ask it to save a checkpoint and end."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """See to it that it ends, by force where it does not when asked."""
        self.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_lines(self) -> str:
        """Return the last lines that it has printed."""
        lines = self._console.read_text(errors="replace").replace("\r", "\n").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_NUM_LAST_LINES:])


def commit() -> str:
    """Return the commit of this checkout, marked where files differ from it, else the package's version."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed, perhaps below somebody's own repository
        return version("mflight")
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip() if told.returncode == 0 else version("mflight")


def _assign(key: str, path: Path) -> str:
    """Return an override in Hydra's syntax; it reads a path with other signs only in quotes."""
    text = str(path)
    if not re.fullmatch(r"[\w./-]+", text):
        text = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"{key}={text}"


def _enter(share: Share) -> None:
    """Keep the new process to its share, and let it end with its parent."""
    if share.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share.cores)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
