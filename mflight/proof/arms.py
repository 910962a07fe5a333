"""The arms of a proof: what is trained against what, as overrides of ``conf/train.yaml``. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig

from mflight.data.share import SyntheticShare

ACCOUNTS = {"equal_real": "real_only", "equal_images": "control", "equal_time": "equal_time"}
"""The arm that synthesis is held against, by account."""
SYNTHESIS = "synthesis"
_SHARE_KEYS = ("mixing", "synthetic_ratio", "warmup_steps", "cooldown_ratio")
_REAL_ONLY = ("synthesis=none", "synthesis.synthetic_ratio=0")  # an experiment may set a share of its own
_OWN_KEYS = ("seeds", "accounts", "output", "jobs")
_NOT_FOR_PROOFS = {
    "seed": "a proof trains each arm with several seeds: name them by seeds=[0,1,2]",
    "resume_from": "the same command goes on with a proof by itself",
    "hydra.run.dir": "output=FOLDER names the place of a proof",
    "paths.run_dir": "output=FOLDER names the place of a proof",
    "sweep": "a proof holds one setting against real images: run it once for each setting",
    "synthesis.control": "it is the arm of the account equal_images already",
}


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: of its folder.
        overrides: of ``conf/train.yaml``, without the seed.
        draws: whether generators run beside the training.
    """

    name: str
    overrides: tuple[str, ...]
    draws: bool = False


def training_overrides(task_overrides: Sequence[str]) -> list[str]:
    """Return what of a proof's command line is for each training.

    Args:
        task_overrides: in Hydra's syntax.

    Returns:
        The overrides but for the proof's own keys.

    Raises:
        ValueError: if a key has no place in a proof.
    """
    kept = []
    for override in task_overrides:
        key = _key(override)
        if key in _NOT_FOR_PROOFS:
            raise ValueError(f"{override} has no place in a proof: {_NOT_FOR_PROOFS[key]}")
        if key not in _OWN_KEYS:
            kept.append(override)
    return kept


def build_arms(overrides: Sequence[str], cfg: DictConfig, accounts: Sequence[str]) -> list[Arm]:
    """Return the arms whose settings are known before anything has run: all but ``equal_time``.

    - ``synthesis``: the overrides as they are.
    - ``real_only``: without those of synthesis, on real images alone, with as many of them as ``synthesis``
      draws: as many steps under ``mixing=add``; fewer under ``replace``, which puts synthetic images in the
      place of real ones.
    - ``control``: as many images at each step, all of them real.

    Args:
        overrides: of the user.
        cfg: as ``conf/train.yaml`` composes them.
        accounts: keys of ``ACCOUNTS``.

    Returns:
        The arms, ``synthesis`` first.

    Raises:
        ValueError: if an account is unknown, if there is no share of synthetic images, or if the steps are
            not bounded.
    """
    unknown = [account for account in accounts if account not in ACCOUNTS]
    if unknown or not accounts:
        raise ValueError(f"accounts must be some of {', '.join(ACCOUNTS)}, got {list(accounts)}")
    if cfg.synthesis.synthetic_ratio == 0 or cfg.synthesis.stream is None:
        raise ValueError(
            "a proof needs synthetic images: choose synthesis=online or synthesis=replay and a "
            f"synthesis.synthetic_ratio above 0, got {cfg.synthesis.synthetic_ratio}"
        )
    if cfg.trainer.max_steps < 1:
        raise ValueError(f"a proof needs a number of steps: trainer.max_steps is {cfg.trainer.max_steps}")
    real = _without_synthesis(overrides)
    arms = [Arm(SYNTHESIS, tuple(overrides), draws=cfg.synthesis.service is not None)]
    if {"equal_real", "equal_time"} & set(accounts):
        arms.append(Arm("real_only", (*real, *_REAL_ONLY, *scale_steps(cfg, equal_real_steps(cfg)))))
    if "equal_images" in accounts:
        share = (f"synthesis.{key}={cfg.synthesis[key]}" for key in _SHARE_KEYS)
        arms.append(Arm("control", (*real, "synthesis=control", *share)))
    return arms


def equal_time_arm(overrides: Sequence[str], cfg: DictConfig, num_steps: int) -> Arm:
    """Return the arm that trains on real images alone for as long as drawing and training took together."""
    return Arm("equal_time", (*_without_synthesis(overrides), *_REAL_ONLY, *scale_steps(cfg, num_steps)))


def equal_real_steps(cfg: DictConfig) -> int:
    """Return in how many steps a real-only run sees as many real images as the run with synthesis."""
    steps = cfg.trainer.max_steps
    share: SyntheticShare = instantiate(cfg.datamodule.share).over(num_steps=steps, num_ranks=1)
    if share.mixing == "add":
        return steps
    return max(1, round(sum(share.counts(step)[0] for step in range(steps)) / cfg.data.batch_size))


def equal_time_steps(real_only: Mapping[str, Any], synthesis: Mapping[str, Any]) -> int:
    """Return how many real-only steps fit into the machine time of drawing and training.

    ``steps x machine_s(synthesis) / machine_s(real_only)``, with ``machine_s`` as below.

    Args:
        real_only: results of the real-only run of the same seed.
        synthesis: results of the run with synthesis.

    Returns:
        The steps, at least 1.
    """
    return max(1, round(real_only["steps"] * machine_s(synthesis) / machine_s(real_only)))


def machine_s(results: Mapping[str, Any]) -> float:
    """Return the machine time of a run in device-seconds; one of a trainer counts as one of a generator.

    ``train_s x num_ranks + busy_s``: the seconds of training and validation on each of its devices, and the
    seconds in which generators drew, over all of them. Where both took turns on one device, the seconds in
    which the training waited for its turn are drawing already and count once.

    Args:
        results: of the run's ``results.json``.

    Returns:
        Device-seconds.
    """
    training_s = results["train_s"] - results.get("synthesis/turns_s", 0.0)
    return training_s * results.get("num_ranks", 1) + results.get("synthesis/busy_s", 0.0)


def scale_steps(cfg: DictConfig, num_steps: int) -> list[str]:
    """Return the overrides that give a training another length; steps at which the rate falls move along.

    Args:
        cfg: of the training.
        num_steps: its new length.

    Returns:
        overrides; none where the length stays.
    """
    before = cfg.trainer.max_steps
    if num_steps == before:
        return []
    overrides = [f"trainer.max_steps={num_steps}"]
    if milestones := (cfg.optim.get("lr_schedule") or {}).get("milestones_steps"):
        moved = ",".join(str(step * num_steps // before) for step in milestones)
        overrides.append(f"optim.lr_schedule.milestones_steps=[{moved}]")
    return overrides


def sets_key(overrides: Sequence[str], key: str) -> bool:
    """Tell whether one of the overrides sets a key, in whatever way Hydra's syntax has for it."""
    return any(_key(override) == key for override in overrides)


def _without_synthesis(overrides: Sequence[str]) -> list[str]:
    """Leave out what says where synthetic images come from: real images need none of it."""
    return [each for each in overrides if _key(each).replace("/", ".").split(".")[0] != "synthesis"]


def _key(override: str) -> str:
    return OverridesParser.create().parse_override(override).key_or_group
