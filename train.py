"""Train a detector, with or without synthesis: `python train.py`, `python train.py --help`."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is first imported

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    from mflight.run import run  # not above: each generator process imports this file, and needs no trainer

    return run(cfg).get(cfg.monitor)


if __name__ == "__main__":
    main()
