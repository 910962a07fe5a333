"""Train a detector, with or without synthesis: `python train.py`, `python train.py --help`."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is first imported

import hydra
from omegaconf import DictConfig

from mflight.data.dataset_check import check_dataset
from mflight.data.files import DATASET_KEYS
from mflight.mistakes import tells_mistakes


@tells_mistakes
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@tells_mistakes
def main(cfg: DictConfig) -> float | None:
    if cfg.data.prepare is None:  # before torch is loaded
        files = {
            key: Path(cfg.data[key]) for key in (*DATASET_KEYS, "cache_dir") if cfg.data[key] is not None
        }
        check_dataset(**files, num_classes=cfg.data.num_classes, max_left_out=cfg.data.max_left_out)
    from mflight.run import run  # not above: each generator process imports this file, and needs no trainer

    return run(cfg).get(cfg.monitor)


if __name__ == "__main__":
    main()
