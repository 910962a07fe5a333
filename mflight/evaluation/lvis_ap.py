"""Average precision by the rules of lvis-api 0.5.3, without its dense grid of images times categories.

Source: Gupta et al., "LVIS", arXiv:1908.03195 (federated annotation); the rules as in the package ``lvis``
0.5.3.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, validate_call

from mflight.data.categories import Category
from mflight.evaluation.detections import Detections, blocks_of_images, concatenate, select_judged
from mflight.evaluation.ground_truth import GroundTruth, cells_of, index_of, is_member
from mflight.evaluation.overlap import OverlapWorkers
from mflight.evaluation.summary import ClassFigures, summarize_classes, to_percent
from mflight.evaluation.verdicts import Verdicts, start_judging

BLOCK_DETECTIONS = 20_000


class LVISEvaluator:
    """Collects the detections of images one by one and scores them by LVIS's rules.

    Detections are matched soon after they come and only their verdicts are kept (at most 48 bytes each, and
    none for those that LVIS ignores), so memory does not grow with masks. With several ranks, each updates
    its own images and takes in the ``state()`` of the others before ``compute()``; matching is per image, so
    nothing is lost.

    Images never updated count as images without detections, as in lvis-api; ``compute(image_ids=...)``
    restricts the figures to some images.

    Args:
        ground_truth: LVIS annotations: a path, the parsed JSON, or a loaded ``GroundTruth``.
        iou_types: "bbox", "segm" or both.
        max_detections: how many detections of an image count, the best across its classes.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        ground_truth: Any,
        iou_types: Annotated[tuple[Literal["bbox", "segm"], ...], Field(min_length=1)] = ("bbox", "segm"),
        max_detections: Annotated[int, Field(ge=1)] = 300,
    ) -> None:
        self.ground_truth = GroundTruth.load(ground_truth)
        self.iou_types: tuple[str, ...] = iou_types
        self.max_detections = max_detections
        if "segm" in iou_types:
            self.ground_truth.check_segmentations()
        self._workers = OverlapWorkers(0)
        self.reset()

    def reset(self) -> None:
        """Forget all detections; the ground truth stays."""
        self._is_updated = np.zeros(len(self.ground_truth.image_ids), dtype=bool)
        self._pending: list[Detections] = []
        self._num_pending = 0
        self._verdicts = [Verdicts.empty(self.iou_types)]
        self._figures: dict[tuple[str, bytes], ClassFigures] = {}

    def take_missing_counts_of(self, categories: Iterable[Category]) -> None:
        """Take frequency and ``image_count`` from the training set where the annotations tell none."""
        self.ground_truth = self.ground_truth.with_missing_counts_of(categories)

    @property
    def updated_image_ids(self) -> list[int]:
        """Ids of the images given so far, merged ones included, ascending."""
        return self.ground_truth.image_ids[self._is_updated].tolist()

    def update(
        self,
        *,
        image_id: int,
        boxes_xyxy: Any,
        scores: Any,
        category_ids: Any,
        rles: Sequence[dict[str, Any] | None] | None = None,
    ) -> None:
        """Take in all detections of one image, in any order.

        Args:
            image_id: id of the image in the annotations.
            boxes_xyxy: ``float[N, 4]`` array or CPU tensor, in pixels.
            scores: ``float[N]``.
            category_ids: ``int[N]``, as in the annotations.
            rles: ``N`` compressed RLE dictionaries of the image's size; None where only boxes are scored. A
                single one may be None where ``needs_masks`` says so.

        Raises:
            ValueError: if an id is unknown, the image was given before, the lengths differ, a score is not
                finite, or masks are missing or of another size than the image.
        """
        place = f"detections of image {image_id}"
        index = int(index_of([image_id], self.ground_truth.image_ids, "update: image id")[0])
        if self._is_updated[index]:
            raise ValueError(f"every image is given once, image {image_id} comes a second time")
        scores = np.asarray(scores, dtype=np.float64)
        boxes_xyxy = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        category_index = index_of(category_ids, self.ground_truth.category_ids, f"{place}: category id")
        masks = list(rles) if rles is not None and "segm" in self.iou_types else None
        lengths = {"boxes_xyxy": len(boxes_xyxy), "scores": len(scores), "category_ids": len(category_index)}
        if masks is not None:
            lengths["rles"] = len(masks)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{place} must have the same number of everything, got {lengths}")
        if not np.isfinite(scores).all():
            raise ValueError(f"{place} must have finite scores, got {scores[~np.isfinite(scores)][0]}")
        if "segm" in self.iou_types:
            needed = self.needs_masks(image_id, category_ids)
            _check_masks(masks, needed, self.ground_truth.image_hw[index].tolist(), place)
        boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
        detections = Detections(
            image_index=np.full(len(scores), index),
            category_index=category_index,
            scores=scores,
            areas_px=boxes_xywh[:, 2] * boxes_xywh[:, 3],
            boxes_xywh=boxes_xywh,
            segmentations=masks,
        )
        self._is_updated[index] = True
        self._figures.clear()
        self._pending.append(select_judged(detections, self.ground_truth, self.max_detections))
        self._num_pending += len(self._pending[-1])
        if self._num_pending >= BLOCK_DETECTIONS:
            self._match_pending()

    def needs_masks(self, image_id: int, category_ids: Any) -> np.ndarray:
        """Tell for which detections of an image ``update`` looks at the mask.

        An image of LVIS holds instances of a dozen classes; a detection of any other class is right or wrong
        (or ignored) without a look at its mask.

        Args:
            image_id: id of the image in the annotations.
            category_ids: ``int[N]``, as in the annotations.

        Returns:
            ``bool[N]``: where the image has an instance of the class and masks are scored.
        """
        image_index = index_of([image_id], self.ground_truth.image_ids, "needs_masks: image id")
        category_index = index_of(
            category_ids, self.ground_truth.category_ids, f"image {image_id}: category id"
        )
        cells = cells_of(image_index, category_index, self.ground_truth.num_categories)
        return is_member(cells, self.ground_truth.cells) & ("segm" in self.iou_types)

    def compute(self, *, image_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Score everything given so far.

        Args:
            image_ids: the images that count; None for all of the annotations.

        Returns:
            Per IoU type AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR, ARs, ARm, ARl (AR at
            ``max_detections``) in percent, unrounded; -1 where no class has an instance, as lvis-api.
        """
        frequencies = self.ground_truth.frequencies
        return {key: self._class_figures(key, image_ids).average(frequencies) for key in self.iou_types}

    def per_class(self, *, image_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return one row per category, in id order.

        Args:
            image_ids: the images that count; None for all of the annotations.

        Returns:
            Rows with ``category_id``, ``name``, ``frequency``, ``image_count`` (as the file tells it, of the
            training images in LVIS; None where it does not), ``num_images`` and ``num_instances`` (what is
            evaluated) and, per IoU type, ``segm/AP``, ``segm/AP50``, ``segm/AP75``, ``segm/AR`` in percent,
            -1 for a category without an instance.
        """
        figures = {key: self._class_figures(key, image_ids) for key in self.iou_types}
        first = figures[self.iou_types[0]]
        rows = []
        for index, category_id in enumerate(self.ground_truth.category_ids.tolist()):
            row: dict[str, Any] = {
                "category_id": category_id,
                "name": self.ground_truth.names[index],
                "frequency": self.ground_truth.frequencies[index],
                "image_count": self.ground_truth.image_counts[index],
                "num_images": int(first.num_images[index]),
                "num_instances": int(first.num_instances[0, index]),
            }
            for key, own in figures.items():
                row[f"{key}/AP"] = to_percent(own.precision[0, index])
                row[f"{key}/AP50"] = to_percent(own.precision_50[index])
                row[f"{key}/AP75"] = to_percent(own.precision_75[index])
                row[f"{key}/AR"] = to_percent(own.recall[0, index])
            rows.append(row)
        return rows

    def state(self) -> dict[str, np.ndarray]:
        """Return what the detections came to, as plain numpy arrays for another rank's ``merge``."""
        self._match_pending()
        verdicts = self._collected()
        state = {
            "updated_image_ids": self.ground_truth.image_ids[self._is_updated],
            "image_ids": self.ground_truth.image_ids[verdicts.image_index],
            "category_index": verdicts.category_index,
            "scores": verdicts.scores,
        }
        for key in self.iou_types:
            state[f"right/{key}"], state[f"wrong/{key}"] = verdicts.right[key], verdicts.wrong[key]
        return state

    def merge(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Take in other evaluators' states over the same ground truth.

        Images already held are skipped, so a rank's own state and the repeated images of a padded
        distributed sampler do no harm.

        Args:
            states: what ``state()`` returned on other ranks.

        Raises:
            ValueError: if a state was made for other IoU types, or names an image that the ground truth
                lacks.
        """
        self._match_pending()
        for rank, state in enumerate(states):
            given = sorted(key.removeprefix("right/") for key in state if key.startswith("right/"))
            if given != sorted(self.iou_types):
                raise ValueError(f"states[{rank}] must hold {sorted(self.iou_types)}, it holds {given}")
            image_ids = self.ground_truth.image_ids
            updated = index_of(state["updated_image_ids"], image_ids, f"states[{rank}]: image id")
            image_index = index_of(state["image_ids"], image_ids, f"states[{rank}]: image id")
            new = Verdicts(
                image_index=image_index.astype(np.int32),
                category_index=state["category_index"],
                scores=state["scores"],
                right={key: state[f"right/{key}"] for key in self.iou_types},
                wrong={key: state[f"wrong/{key}"] for key in self.iou_types},
            )
            self._verdicts.append(new.take(~self._is_updated[image_index]))
            self._is_updated[updated] = True
        self._figures.clear()

    def update_all(self, *, detections: Detections, num_workers: int = 0) -> None:
        """Take in the detections of many images at once, as ``read_results`` returns them.

        Args:
            detections: whole images that were not given before, in any order.
            num_workers: processes that compute mask overlaps; 0 for none beside this one.
        """
        self._match_pending()
        self._is_updated[detections.image_index] = True
        self._figures.clear()
        started: deque[Callable[[], Verdicts]] = deque()
        with OverlapWorkers(num_workers if "segm" in self.iou_types else 0) as workers:
            for block in blocks_of_images(detections.image_index, BLOCK_DETECTIONS):
                judged = select_judged(detections.take(block), self.ground_truth, self.max_detections)
                started.append(start_judging(judged, self.ground_truth, self.iou_types, workers))
                if len(started) > 2 * num_workers:
                    self._verdicts.append(started.popleft()())
            self._verdicts.extend(finish() for finish in started)

    def _match_pending(self) -> None:
        if self._pending:
            # Blocks hold whole images; cells must ascend across them.
            block = concatenate(self._pending)
            order = np.lexsort((block.category_index, block.image_index))
            finish = start_judging(block.take(order), self.ground_truth, self.iou_types, self._workers)
            self._verdicts.append(finish())
            self._pending, self._num_pending = [], 0

    def _collected(self) -> Verdicts:
        self._verdicts = [Verdicts.concatenate(self._verdicts)]
        return self._verdicts[0]

    def _class_figures(self, iou_type: str, image_ids: Sequence[int] | None) -> ClassFigures:
        is_evaluated = np.ones(len(self.ground_truth.image_ids), dtype=bool)
        if image_ids is not None:
            is_evaluated[:] = False
            is_evaluated[index_of(image_ids, self.ground_truth.image_ids, "image_ids: image id")] = True
        key = (iou_type, np.packbits(is_evaluated).tobytes())
        if key not in self._figures:
            self._match_pending()
            self._figures[key] = summarize_classes(
                self._collected(), iou_type, self.ground_truth, is_evaluated
            )
        return self._figures[key]


def _check_masks(
    masks: list[dict[str, Any] | None] | None, needed: np.ndarray, size_hw: list[int], place: str
) -> None:
    if masks is None:
        raise ValueError(f'{place} must have rles because iou_types holds "segm", got None')
    for index, (rle, is_needed) in enumerate(zip(masks, needed.tolist(), strict=True)):
        if rle is None and is_needed:
            raise ValueError(f"{place}: rles[{index}] is None, but the image has instances of its class")
        if rle is not None and list(rle["size"]) != size_hw:
            raise ValueError(
                f"{place}: rles[{index}] must have the image's size {size_hw}, got {list(rle['size'])}"
            )
