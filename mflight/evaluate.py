"""Score a results file, a checkpoint, or the masks of a pool: ``python -m mflight.evaluate --help``.

python -m mflight.evaluate annotations=GT.json predictions=RESULTS.json [output=OUT.json] [per_class=OUT.csv]
python -m mflight.evaluate checkpoint=RUN [devices=auto] [overrides='["data.root=/elsewhere"]']
python -m mflight.evaluate pool=POOL segmenter=facebook/sam-vit-huge
python -m mflight.evaluate pool=POOL checkpoint=RUN
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mflight.evaluation.figure_files import require_folders, write_figures
from mflight.evaluation.lvis_package import compare_with_package
from mflight.mistakes import tells_mistakes
from mflight.synthesis.pool.index import INDEX_NAME, holds_pool

_CONFIG_PATH = str(Path(__file__).resolve().parents[1] / "conf")
_QUESTIONS = {
    "predictions": "annotations=GT.json predictions=RESULTS.json",
    "checkpoint": "checkpoint=RUN",
    "pool": "pool=POOL segmenter=facebook/sam-vit-huge",
    "checkpoint and pool": "pool=POOL checkpoint=RUN",
}

Figures = dict[str, dict[str, float]]


def evaluate(
    annotations: str,
    predictions: str,
    output: str | None = None,
    max_detections: int = 300,
    num_workers: int | None = None,
    per_class: str | None = None,
    train_annotations: str | None = None,
    iou_types: list[str] | None = None,
    with_lvis: bool = False,
) -> Figures:
    """Score a results file and write the figures.

    Args:
        annotations: path of LVIS-format annotations.
        predictions: path of LVIS-format results with boxes, masks or both.
        output: path of the JSON file to write; None to write nothing.
        max_detections: how many detections of an image count.
        num_workers: processes for mask overlaps, see ``score_results``.
        per_class: path of the CSV file with a row for each class; None to write nothing.
        train_annotations: path of the training annotations, whose frequencies and image counts stand for
            those that ``annotations`` lack.
        iou_types: what is scored, "bbox", "segm" or both; None: whatever the results hold.
        with_lvis: put the figures of the ``lvis`` package beside ours, and how far they lie apart.

    Returns:
        Per IoU type in the results the thirteen figures in percent, -1 where there is nothing to average.

    Raises:
        FileNotFoundError: if an input file or the folder of an output does not exist.
    """
    from mflight.evaluation.results import score_results

    inputs = {"annotations": annotations, "predictions": predictions, "train_annotations": train_annotations}
    for key, path in inputs.items():
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{key} must be an existing JSON file, found no file at {path}")
    require_folders(output, per_class)
    evaluator = score_results(
        ground_truth=annotations,
        results=predictions,
        max_detections=max_detections,
        num_workers=num_workers,
        iou_types=iou_types,
    )
    if train_annotations is not None:
        from mflight.data.lvis import read_categories

        evaluator.take_missing_counts_of(read_categories(train_annotations))
    figures = evaluator.compute()
    if with_lvis:
        figures = compare_with_package(figures, annotations, predictions, max_detections)
    write_figures(figures, evaluator.per_class(), output, per_class)
    return figures


def evaluate_checkpoint(
    checkpoint: str,
    output: str | None = None,
    per_class: str | None = None,
    max_detections: int = 300,
    devices: int | str = 1,
    overrides: list[str] | None = None,
    prior_tau: float | None = None,
) -> Figures:
    """Validate a checkpoint on the validation images of its run, and write the figures.

    What is not there (checkpoint, config, dataset, folder of an output) is a FileNotFoundError.

    Args:
        checkpoint: a run folder or a checkpoint file in it, see ``validate_checkpoint``.
        output: as for ``evaluate``.
        per_class: as for ``evaluate``.
        max_detections: how many detections of an image count.
        devices: ranks that share the images, or ``"auto"``.
        overrides: ``key=value`` of the run's config.
        prior_tau: see ``validate_checkpoint``.

    Returns:
        As ``evaluate``; empty on all ranks but the first.
    """
    from mflight.training.run_folder import find_checkpoint

    require_folders(output, per_class)
    find_checkpoint(checkpoint)  # a sentence, before torch is loaded
    from mflight.training.validation import validate_checkpoint

    figures, rows = validate_checkpoint(
        checkpoint=checkpoint,
        overrides=overrides or [],
        max_detections=max_detections,
        devices=devices,
        prior_tau=prior_tau,
    )
    if figures:
        write_figures(figures, rows, output, per_class)
    return figures


def evaluate_pool(
    pool: str,
    segmenter: str,
    output: str | None = None,
    per_class: str | None = None,
    max_images: int | None = None,
    device: str = "auto",
) -> Figures:
    """Compare the masks of a pool with those that SAM finds in their boxes, and write the figures.

    Args:
        pool: the pool folder.
        segmenter: SAM checkpoint, a hub id or a folder.
        output: as for ``evaluate``.
        per_class: as for ``evaluate``.
        max_images: the first ones only; None for all.
        device: of SAM, as torch names it, or ``"auto"``.

    Returns:
        Under ``masks``: ``mIoU`` over instances and ``mIoU_class`` over classes in percent, and the counts.

    Raises:
        FileNotFoundError: if there is no pool, no SAM checkpoint, or the folder of an output does not exist.
    """
    require_folders(output, per_class)
    if not holds_pool(pool):
        raise FileNotFoundError(f"pool must be a pool folder, found no {INDEX_NAME} in {pool}")
    from mflight.detection.segment_anything import SegmentAnything
    from mflight.evaluation.mask_quality import compare_masks

    quality = compare_masks(
        _labeled_images(Path(pool), max_images), SegmentAnything(checkpoint=segmenter, device=device)
    )
    counts = {"num_images": quality.num_images, "num_instances": quality.num_instances}
    figures = {"masks": {**quality.compute(), **counts}}
    write_figures(figures, quality.per_class(), output, per_class)
    return figures


def evaluate_confirmation(
    pool: str,
    checkpoint: str,
    output: str | None = None,
    per_class: str | None = None,
    max_images: int | None = None,
    overrides: list[str] | None = None,
) -> Figures:
    """Tell which instances of a pool ``callbacks.detector_check`` would leave out, and write the figures.

    Args:
        pool: the pool folder.
        checkpoint: of the detector that is asked, see ``validate_checkpoint``.
        output: as for ``evaluate``.
        per_class: as for ``evaluate``.
        max_images: the first ones only; None for all.
        overrides: ``key=value`` of the run's config.

    Returns:
        By frequency the share of the instances below each threshold, in percent.
    """
    require_folders(output, per_class)
    from mflight.training.pool_check import check_pool

    figures, rows = check_pool(
        checkpoint=checkpoint, pool=pool, overrides=overrides or [], max_images=max_images
    )
    write_figures(figures, rows, output, per_class)
    return figures


def figures_table(figures: Figures) -> Table:
    """Lay out figures, one column per kind, a dash where there is nothing to average."""
    table = Table(title="Figures (%)")
    table.add_column("figure")
    for kind in figures:
        table.add_column(kind, justify="right")
    for name in next(iter(figures.values())):
        values = [own[name] for own in figures.values()]
        table.add_row(
            name, *(str(v) if isinstance(v, int) else f"{v:.2f}" if v >= 0 else "-" for v in values)
        )
    return table


def _labeled_images(pool: Path, max_images: int | None) -> Iterator[Any]:
    from mflight.functional.masks import rle_decode
    from mflight.synthesis.pool.index import PoolError
    from mflight.synthesis.pool.reader import PoolReader

    reader = PoolReader(pool)
    for ref in reader.poll()[:max_images]:
        try:
            sample = reader.read(ref)
        except PoolError as error:
            Console(stderr=True).print(f"left out: {error}", highlight=False)
            continue
        masks = [rle_decode(annotation["segmentation"]) for annotation in sample.annotations]
        yield sample.image, masks, [annotation["category_id"] for annotation in sample.annotations]


def answer(cfg: DictConfig) -> Figures:
    """Answer the one question that the config poses.

    Args:
        cfg: ``conf/evaluate.yaml`` with its overrides.

    Returns:
        As ``evaluate``, ``evaluate_checkpoint``, ``evaluate_pool`` or ``evaluate_confirmation``.

    Raises:
        ValueError: if it poses none, several, or half a question.
    """
    asked = [key for key in ("predictions", "checkpoint", "pool") if cfg[key] is not None]
    is_asked_of_both = asked == ["checkpoint", "pool"] and cfg.segmenter is None
    if len(asked) != 1 and not is_asked_of_both:
        commands = ", or ".join(f"python -m mflight.evaluate {command}" for command in _QUESTIONS.values())
        raise ValueError(f"one of {', '.join(_QUESTIONS)} must be set, got {asked or 'none'}: {commands}")
    files = {"output": cfg.output, "per_class": cfg.per_class}
    if cfg.evaluator not in ("mflight", "lvis"):
        raise ValueError(f"evaluator must be mflight or lvis, got {cfg.evaluator!r}")
    if cfg.predictions is not None:
        if cfg.annotations is None:
            told = "predictions need annotations, annotations is not set"
            raise ValueError(f"{told}: {_QUESTIONS['predictions']}")
        return evaluate(
            cfg.annotations,
            cfg.predictions,
            max_detections=cfg.max_detections,
            num_workers=cfg.num_workers,
            train_annotations=cfg.train_annotations,
            iou_types=cfg.iou_types and list(cfg.iou_types),
            with_lvis=cfg.evaluator == "lvis",
            **files,
        )
    overrides = OmegaConf.to_container(cfg.overrides)
    if is_asked_of_both:
        of_pool = {"max_images": cfg.max_images, "overrides": overrides}
        return evaluate_confirmation(cfg.pool, cfg.checkpoint, **of_pool, **files)
    if cfg.checkpoint is not None:
        return evaluate_checkpoint(
            cfg.checkpoint,
            max_detections=cfg.max_detections,
            devices=cfg.devices,
            overrides=overrides,
            prior_tau=cfg.prior_tau,
            **files,
        )
    if cfg.segmenter is None:
        raise ValueError(f"pool needs a segmenter, segmenter is not set: {_QUESTIONS['pool']}")
    return evaluate_pool(cfg.pool, cfg.segmenter, max_images=cfg.max_images, device=cfg.device, **files)


@tells_mistakes
@hydra.main(version_base="1.3", config_path=_CONFIG_PATH, config_name="evaluate")
@tells_mistakes
def main(cfg: DictConfig) -> None:
    """Run the command with ``conf/evaluate.yaml`` and its overrides."""
    figures = answer(cfg)
    if not figures:  # another rank tells them
        return
    Console().print(figures_table(figures))
    for path in (cfg.output, cfg.per_class):
        if path is not None:
            print(f"Written to {path}")


if __name__ == "__main__":
    main()
