"""Score an LVIS results file: ``python -m mflight.evaluate annotations=GT.json predictions=RESULTS.json``."""

import json
import os
import tempfile
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from mflight.evaluation.scoring import score_results

_CONFIG_PATH = str(Path(__file__).resolve().parents[1] / "conf")


def evaluate(
    annotations: str,
    predictions: str,
    output: str | None = None,
    max_detections: int = 300,
    num_workers: int | None = None,
) -> dict[str, dict[str, float]]:
    """Score a results file and write the figures.

    Args:
        annotations: path of LVIS-format annotations.
        predictions: path of LVIS-format results with boxes, masks or both.
        output: path of the JSON file to write; None to write nothing.
        max_detections: how many detections of an image count.
        num_workers: processes for mask overlaps, see ``score_results``.

    Returns:
        Per IoU type in the results the thirteen figures in percent, -1 where there is nothing to average.

    Raises:
        FileNotFoundError: if an input file or the folder of the output does not exist.
    """
    for key, path in (("annotations", annotations), ("predictions", predictions)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{key} must be an existing JSON file, found no file at {path}")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise FileNotFoundError(f"output must lie in an existing folder, found none at {Path(output).parent}")
    evaluator = score_results(
        ground_truth=annotations, results=predictions, max_detections=max_detections, num_workers=num_workers
    )
    figures = evaluator.compute()
    if output is not None:
        _write_atomically(Path(output), json.dumps(figures, indent=2) + "\n")
    return figures


def figures_table(figures: dict[str, dict[str, float]]) -> Table:
    """Lay out figures in percent, one column per IoU type, a dash where there is nothing to average."""
    table = Table(title="LVIS figures (%)")
    table.add_column("figure")
    for iou_type in figures:
        table.add_column(iou_type, justify="right")
    for name in next(iter(figures.values())):
        cells = [f"{own[name]:.2f}" if own[name] >= 0 else "-" for own in figures.values()]
        table.add_row(name, *cells)
    return table


def _write_atomically(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@hydra.main(version_base="1.3", config_path=_CONFIG_PATH, config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Run the command.

    Args:
        cfg: ``conf/evaluate.yaml`` with its overrides.

    Raises:
        SystemExit: with the sentence of the error, if the command cannot do what it was asked.
    """
    for key in ("annotations", "predictions"):
        if key not in cfg:  # a value of ??? counts as absent
            raise SystemExit(
                f"{key} is not set: python -m mflight.evaluate annotations=GT.json predictions=RESULTS.json"
            )
    try:
        figures = evaluate(**cfg)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from None
    Console().print(figures_table(figures))
    if cfg.output is not None:
        print(f"Written to {cfg.output}")


if __name__ == "__main__":
    main()
