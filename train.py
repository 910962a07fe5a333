"""Train a detector, with or without synthesis: `python train.py experiment=mini`, `python train.py --help`."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is first imported

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    from mflight.run import run

    return run(cfg).get(cfg.monitor)


if __name__ == "__main__":
    main()
