"""What a detector confirms of a pool: the calibration of ``callbacks.detector_check``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from mflight.data.categories import FREQUENCIES, Categories
from mflight.data.lvis import read_categories
from mflight.data.transforms import EvalTransform
from mflight.detection.proposals import ProposalNetwork
from mflight.detection.verification import judge_instances
from mflight.synthesis.pool.index import INDEX_NAME, holds_pool
from mflight.synthesis.pool_classes import check_pool_classes
from mflight.synthesis.stream import PoolStream
from mflight.training.checkpoint_io import open_checkpoint
from mflight.training.run_folder import find_checkpoint, load_run_config

SCORES = (0.01, 0.03, 0.1, 0.3, 0.5)

Judgement = tuple[int, float, float]
"""``category_id`` of an instance, best box IoU of a proposal with it, best score of its class on it."""


def check_pool(
    *, checkpoint: str | Path, pool: str | Path, overrides: Sequence[str] = (), max_images: int | None = None
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Let a trained detector judge the instances of a pool by the measures that training would use.

    Args:
        checkpoint: a run folder or a checkpoint file, see ``validate_checkpoint``.
        pool: the pool folder.
        overrides: ``key=value`` of the run's config.
        max_images: the first ones only; None for all.

    Returns:
        The share of the instances, in percent, that each threshold would leave out: by frequency and by
        threshold, -1 where there is no instance; and a row for each class in the pool.

    Raises:
        FileNotFoundError: if the checkpoint, its config, the pool or the training annotations are not there.
        ValueError: if the checkpoint is another detector's than ``build_mask_rcnn``'s.
    """
    run_dir, checkpoint_file = find_checkpoint(checkpoint)
    if not holds_pool(pool):
        raise FileNotFoundError(f"pool must be a pool folder, found no {INDEX_NAME} in {pool}")
    cfg = load_run_config(run_dir, overrides)
    categories = read_categories(Path(cfg.data.train_annotations))
    check_pool_classes(pool, categories)
    stream = PoolStream(pool_dir=pool, categories=categories, max_reuse=1, publish=False)
    detector = load_detector(cfg, checkpoint_file, categories)
    if not any(isinstance(part, ProposalNetwork) for part in detector.modules()):
        raise ValueError(f"a pool is judged by a detector of build_mask_rcnn, got {type(detector).__name__}")
    judged = list(_judge(detector, stream, max_images))
    figures = {"all": left_out(judged)}
    for frequency in FREQUENCIES:
        ids = {category.category_id for category in categories.with_frequency(frequency)}
        figures[frequency] = left_out([one for one in judged if one[0] in ids])
    return figures, _rows(judged, categories)


def left_out(judged: Sequence[Judgement]) -> dict[str, float]:
    """Work out how many instances each threshold leaves out.

    Args:
        judged: the instances.

    Returns:
        The share of them, in percent, by threshold; -1 without instances.

    Example:
        >>> figures = left_out([(2, 0.8, 0.05), (2, 0.2, 0.6)])
        >>> figures["IoU < 0.3"], figures["score < 0.1"], figures["IoU < 0.3 or score < 0.1"]
        (50.0, 50.0, 100.0)
    """
    _, ious, scores = np.array(judged, dtype=float).reshape(-1, 3).T
    rules = {"IoU < 0.3": ious < 0.3, "IoU < 0.5": ious < 0.5}
    rules |= {f"score < {bound:g}": scores < bound for bound in SCORES}
    rules["IoU < 0.3 or score < 0.1"] = (ious < 0.3) | (scores < 0.1)
    return {rule: 100.0 * float(is_out.mean()) if len(judged) else -1.0 for rule, is_out in rules.items()}


def load_detector(cfg: DictConfig, checkpoint_file: Path, categories: Categories) -> torch.nn.Module:
    """Build the detector of a run's config, with the weights of a checkpoint, in evaluation."""
    held = open_checkpoint(checkpoint_file, key="checkpoint", categories=categories.names)
    cfg.data.num_classes = len(categories)
    module = instantiate(cfg.module)
    module.load_state_dict(held["state_dict"])
    return module.model.eval()


def _judge(detector: torch.nn.Module, stream: PoolStream, max_images: int | None) -> Iterator[Judgement]:
    transform = EvalTransform()
    for number, sample in enumerate(stream):
        if number == max_images:
            return
        image, target = transform(*sample)
        ids = [stream.categories.category_id_of(label) for label in target["labels"].tolist()]
        ious, scores = judge_instances(detector, image, target)
        yield from zip(ids, ious.tolist(), scores.tolist(), strict=True)


def _rows(judged: Sequence[Judgement], categories: Categories) -> list[dict[str, Any]]:
    rows = []
    for category in categories:
        own = [one for one in judged if one[0] == category.category_id]
        if own:
            about = {"category_id": category.category_id, "name": category.name}
            about |= {"frequency": category.frequency, "num_instances": len(own)}
            rows.append(about | left_out(own))
    return rows
