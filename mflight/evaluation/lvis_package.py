"""Score a results file with the ``lvis`` package itself, to compare with: the only place that imports it."""

import contextlib
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

Figures = dict[str, dict[str, float]]


class _Numpy:
    """numpy with the alias ``float``, which numpy 1.24 removed and lvis 0.5.3 asks for."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def compare_with_package(
    figures: Figures, annotations: str, predictions: str, max_detections: int = 300
) -> Figures:
    """Put the package's figures beside ours.

    Args:
        figures: ours, per IoU type in percent.
        annotations: path of LVIS-format annotations.
        predictions: path of LVIS-format results.
        max_detections: how many detections of an image count.

    Returns:
        For each IoU type ours, the package's, and how far they lie apart.

    Raises:
        ValueError: if the package cannot read the files; it needs ``neg_category_ids`` of every image.
    """
    compared: Figures = {}
    for iou_type, ours in figures.items():
        try:
            theirs = _score(annotations, predictions, iou_type, max_detections)
        except (KeyError, AttributeError, AssertionError, TypeError) as error:
            files = f"{predictions} on {annotations}"
            raise ValueError(f"the lvis package cannot score {files}: {error!r}") from error
        compared[iou_type] = ours
        compared[f"{iou_type} by lvis"] = theirs
        compared[f"{iou_type} apart"] = {name: abs(value - theirs[name]) for name, value in ours.items()}
    return compared


@contextlib.contextmanager
def _without_opencv() -> Iterator[None]:
    """Import the package without OpenCV, which may lack libGL: it draws with it, but scores without."""
    before = sys.modules.get("cv2")
    sys.modules["cv2"] = types.ModuleType("cv2")
    try:
        yield
    finally:
        del sys.modules["cv2"]
        if before is not None:
            sys.modules["cv2"] = before


def _score(annotations: str, predictions: str, iou_type: str, max_detections: int) -> dict[str, float]:
    with _without_opencv():
        import lvis.eval
        from lvis import LVIS, LVISEval, LVISResults

    logging.getLogger("lvis").setLevel(logging.ERROR)
    plain, lvis.eval.np = lvis.eval.np, _Numpy()
    try:
        truth = LVIS(annotations)
        evaluation = LVISEval(truth, LVISResults(truth, predictions, max_dets=max_detections), iou_type)
        evaluation.params.max_dets = max_detections
        evaluation.run()
    finally:
        lvis.eval.np = plain
    results = {name.split("@")[0]: value for name, value in evaluation.get_results().items()}
    return {name: 100 * value if value >= 0 else -1.0 for name, value in results.items()}
