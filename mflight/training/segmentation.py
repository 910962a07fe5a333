"""The detector as a LightningModule: losses in training, LVIS figures in validation."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mflight.data.categories import Categories
from mflight.data.target import Target
from mflight.detection.heads import InstanceHeads
from mflight.detection.prior_correction import PriorCorrection
from mflight.detection.results import predictions_to_rle
from mflight.evaluation.lvis_ap import LVISEvaluator
from mflight.training.rank_batches import gather_from_ranks, rank_and_world_size, sum_over_ranks

Batch = tuple[list[Tensor], list[Target]]

_LOSS_NAMES = {
    "loss_classifier": "classifier",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_box",
}
_BEST_NAMES = ("AP", "APr", "APc", "APf")


class InstanceSegmentationModule(L.LightningModule):
    """Trains a detector and scores it by LVIS's rules.

    It logs ``train/loss/*`` at each step, and ``val/bbox/*`` and ``val/segm/*`` (AP, AP50, ..., APr, APc,
    APf, in percent) after each validation, with the best so far as ``val/best/*``; then ``per_class`` holds a
    row for each class, on rank 0, and ``validated_at_step`` the step. Its checkpoints keep the random state,
    for the detector draws the anchors and proposals that it learns from.

    Args:
        model: a :class:`mflight.detection.detector.Detector`.
        optimizer: called with the parameters that are trained.
        lr_schedule: called with the optimizer, stepped once a training step; ``None`` keeps the rate.
        evaluator: called before training or validation begins, when the annotations are there.
        prior_correction: of the class scores in validation; ``None`` or a ``tau`` of 0 leaves them. It needs
            a detector of mflight's own, and a datamodule with ``train_categories``.

    Raises:
        ValueError: if ``lr_schedule`` breaks its rule, or if there are no class scores to correct.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler] | None = None,
        evaluator: Callable[[], LVISEvaluator] | None = None,
        prior_correction: PriorCorrection | None = None,
    ):
        super().__init__()
        self.model = model
        self._build_optimizer, self._build_schedule = optimizer, lr_schedule
        self._build_evaluator = evaluator
        if lr_schedule is not None:  # a setting that breaks its rule is told now, not when the data are open
            lr_schedule(optimizer([nn.Parameter(torch.zeros(1))]))
        self._evaluator: LVISEvaluator | None = None
        self.per_class: list[dict[str, Any]] = []
        self.validated_at_step: int | None = None
        self._best: dict[str, float] = {}
        self._random_state: dict[str, Tensor] | None = None
        self._prior = prior_correction if prior_correction is not None and prior_correction.tau else None
        if self._prior is not None and self._heads is None:
            raise ValueError(
                f"module.prior_correction.tau={self._prior.tau} needs a detector of mflight's own, "
                f"got {type(model).__name__}"
            )
        num_classes = self._heads.classification_loss.num_classes if self._heads else 0
        self._class_counts = torch.zeros(num_classes, dtype=torch.float64)

    @property
    def _heads(self) -> InstanceHeads | None:  # not an attribute: torch would list its weights twice
        return next((part for part in self.model.modules() if isinstance(part, InstanceHeads)), None)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections of each image; ``images`` are float32[3, H, W] in [0, 1]."""
        return self.model(images)

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule."""
        optimizer = self._build_optimizer([p for p in self.parameters() if p.requires_grad])
        if self._build_schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._build_schedule(optimizer), "interval": "step"},
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the detector's losses; one that is not finite ends the training with its name."""
        images, targets = batch
        self._count_classes(targets)
        losses = self.model(images, targets)
        total = sum(losses.values())
        if not math.isfinite(total.detach().item()):
            values = {name: round(loss.item(), 4) for name, loss in losses.items()}
            ids = [target["image_id"] for target in targets]
            raise FloatingPointError(
                f"the loss must stay finite, got {values} at step {self.global_step}, images {ids}"
            )
        logged = {f"train/loss/{_LOSS_NAMES.get(name, name)}": loss.detach() for name, loss in losses.items()}
        self.log_dict(logged, batch_size=len(images))
        self.log("train/loss/total", total.detach(), prog_bar=True, batch_size=len(images))
        return total

    def setup(self, stage: str) -> None:
        """Read what is scored against, so that what is wrong with it is said before the training."""
        if self._build_evaluator is None or self._evaluator is not None:
            return
        self._evaluator = self._build_evaluator()
        if "" in self._evaluator.ground_truth.frequencies:
            self._evaluator.take_missing_counts_of(getattr(self.trainer.datamodule, "train_categories", ()))

    def on_validation_epoch_start(self) -> None:
        """Make the evaluator ready."""
        if self._evaluator is None:
            raise ValueError("validation needs an evaluator, got evaluator=None")
        self._evaluator.reset()
        if self._prior is not None and not self.trainer.sanity_checking:
            self.correct_prior(self.trainer.datamodule.train_categories)
        self.validated_at_step = self.global_step

    def validation_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Tensor]]:
        """Detect, and hand boxes and run-length masks to the evaluator at once."""
        images, targets = batch
        predictions = self.model(images) if images else []  # none of them could be read
        category_ids = self._evaluator.ground_truth.category_ids
        for image, target, prediction in zip(images, targets, predictions, strict=True):
            image_id = int(target["image_id"])
            found_ids = category_ids[prediction["labels"].cpu().numpy() - 1]
            needed = self._evaluator.needs_masks(image_id, found_ids)
            self._evaluator.update(
                image_id=image_id,
                boxes_xyxy=prediction["boxes"].float().cpu(),
                scores=prediction["scores"].float().cpu(),
                category_ids=found_ids,
                rles=predictions_to_rle(prediction, tuple(image.shape[-2:]), needed=needed),
            )
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Score what all ranks have found, and log it on each of them: callbacks may watch it."""
        figures = self._score()
        for iou_type, values in figures.items():
            for name, value in values.items():
                self.log(f"val/{iou_type}/{name}", torch.tensor(value, dtype=torch.float32), sync_dist=True)
            for name in _BEST_NAMES:
                key = f"val/best/{iou_type}/{name}"
                self._best[key] = max(values[name], self._best.get(key, values[name]))
                self.log(key, torch.tensor(self._best[key], dtype=torch.float32), sync_dist=True)
        self._evaluator.reset()

    def correct_prior(self, categories: Categories) -> None:
        """Let the detector score for the prior that is wanted, from now on; all ranks call it together.

        Args:
            categories: with the instances of each class in the training annotations.

        Raises:
            ValueError: if nothing is known of what the detector was trained on.
        """
        trained = sum_over_ranks(self._class_counts.to(self.device))
        if not trained.any():
            raise ValueError(
                f"module.prior_correction.tau={self._prior.tau} needs to know the classes trained on, "
                "this checkpoint was written by a version that did not count them"
            )
        real = torch.tensor([float(one.instance_count) for one in categories])
        self._heads.class_shift = self._prior.shift(real.to(trained), trained)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the best figures, and the random state of each rank; rank 0 alone writes the file."""
        checkpoint["best_figures"] = dict(self._best)
        checkpoint["class_counts"] = sum_over_ranks(self._class_counts.to(self.device)).cpu()
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["random_state"] = {"ranks": gather_from_ranks(state)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember this rank's random state until training goes on, and the best figures."""
        self._best = dict(checkpoint.get("best_figures", {}))
        states, (rank, _) = checkpoint.get("random_state", {}).get("ranks", []), rank_and_world_size()
        if rank == 0:  # the others go on from 0, for their sum is kept
            self._class_counts = checkpoint.get("class_counts", self._class_counts)
        self._random_state = states[rank] if rank < len(states) else None

    def on_train_start(self) -> None:
        """Go on with the random state of the checkpoint."""
        state, self._random_state = self._random_state or {}, None
        if "cpu" in state:
            torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)

    def _count_classes(self, targets: list[Target]) -> None:
        """Count the instances that are trained on, those of an image by its weight in the classification."""
        if self._heads is None:
            return
        weights = self._heads.synthetic_losses.image_weights(targets, "classification") or [1.0] * len(
            targets
        )
        self._class_counts = self._class_counts.to(self.device)
        for target, weight in zip(targets, weights, strict=True):
            labels = target["labels"].to(self.device)
            self._class_counts.index_add_(0, labels - 1, torch.full_like(labels, weight, dtype=torch.float64))

    def _score(self) -> dict[str, dict[str, float]]:
        """Let rank 0 score the detections of all ranks, and tell the figures to the others."""
        rank, world_size = rank_and_world_size()
        if world_size > 1:
            states = [None] * world_size if rank == 0 else None
            dist.gather_object(self._evaluator.state(), states)
            if rank == 0:
                self._evaluator.merge(states[1:])
        told: list[Any] = [None]
        if rank == 0:
            seen = self._evaluator.updated_image_ids
            told = [self._evaluator.compute(image_ids=seen)]
            self.per_class = self._evaluator.per_class(image_ids=seen)
        if world_size > 1:
            dist.broadcast_object_list(told)
        return told[0]
