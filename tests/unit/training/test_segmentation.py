import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mflight.data.categories import Categories, Category
from mflight.detection.prior_correction import PriorCorrection
from mflight.evaluation.lvis_ap import LVISEvaluator
from mflight.training.segmentation import InstanceSegmentationModule
from tests.unit.detection.test_mask_rcnn import build_tiny, draw_shapes


class Losses(torch.nn.Module):
    """A detector whose classification loss is one number."""

    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, images, targets):
        return {"loss_classifier": self.value, "loss_mask": torch.tensor(2.0)}


def module_with_loss(value):
    return InstanceSegmentationModule(model=Losses(value), optimizer=torch.optim.SGD)


def test_a_loss_that_is_not_finite_ends_training_with_its_name_and_images():
    module = module_with_loss(float("inf"))
    targets = [{"image_id": 17}, {"image_id": 4}]
    with pytest.raises(
        FloatingPointError, match=r"'loss_classifier': inf, 'loss_mask': 2\.0.*step 0.*\[17, 4\]"
    ):
        module.training_step(([torch.zeros(3, 8, 8)] * 2, targets), 0)


def test_the_optimizer_gets_what_is_trained_and_the_schedule_steps_with_it():
    module = InstanceSegmentationModule(
        model=torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1).requires_grad_(False)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
    )
    configured = module.configure_optimizers()
    assert [p.numel() for p in configured["optimizer"].param_groups[0]["params"]] == [6, 3]
    assert configured["lr_scheduler"]["interval"] == "step"


def test_a_checkpoint_brings_the_random_state_back_when_training_starts():
    torch.manual_seed(5)
    checkpoint = {}
    module_with_loss(1.0).on_save_checkpoint(checkpoint)
    expected = torch.rand(3)
    resumed = module_with_loss(1.0)
    resumed.on_load_checkpoint(checkpoint)
    torch.rand(7)  # what the set-up of a run may draw
    resumed.on_train_start()
    assert torch.equal(torch.rand(3), expected)


def test_a_new_run_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    module_with_loss(1.0).on_train_start()
    assert torch.equal(torch.rand(3), expected)


def test_validation_without_an_evaluator_is_told():
    with pytest.raises(ValueError, match="evaluator=None"):
        module_with_loss(1.0).on_validation_epoch_start()


def test_a_schedule_that_breaks_its_rule_is_told_before_anything_is_built():
    def refuse(optimizer):
        raise ValueError(f"no schedule for a rate of {optimizer.param_groups[0]['lr']}")

    with pytest.raises(ValueError, match=r"a rate of 0\.5"):
        InstanceSegmentationModule(
            model=Losses(1.0), optimizer=lambda p: torch.optim.SGD(p, lr=0.5), lr_schedule=refuse
        )


class Scores:
    """An evaluator that has seen nothing and says what it is told to."""

    updated_image_ids = ()
    ground_truth = SimpleNamespace(frequencies=("rare",))

    def __init__(self, values):
        self.values = values

    def reset(self):
        pass

    def compute(self, image_ids):
        return {"segm": dict.fromkeys(("AP", "APr", "APc", "APf"), self.values.pop(0))}

    def per_class(self, image_ids):
        return []


def validated(module, monkeypatch, values):
    logged = []
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.append((name, value.item())))
    module._build_evaluator = lambda: Scores(values)
    module.setup("fit")
    for _ in range(len(values)):
        module.on_validation_epoch_start()
        module.on_validation_epoch_end()
    return [value for name, value in logged if name == "val/best/segm/APr"]


def test_the_best_figures_are_kept_over_validations_and_over_a_resume(monkeypatch):
    module, checkpoint = module_with_loss(1.0), {}
    assert validated(module, monkeypatch, [-1.0, 3.0, 2.0]) == [-1.0, 3.0, 3.0]
    module.on_save_checkpoint(checkpoint)
    resumed = module_with_loss(1.0)
    resumed.on_load_checkpoint(checkpoint)
    assert validated(resumed, monkeypatch, [1.0, 5.0]) == [3.0, 5.0]


def test_annotations_that_cannot_be_scored_are_told_before_the_training(tmp_path):
    evaluator = partial(LVISEvaluator, ground_truth=tmp_path / "val.json")
    module = InstanceSegmentationModule(model=Losses(1.0), optimizer=torch.optim.SGD, evaluator=evaluator)
    with pytest.raises(FileNotFoundError, match=r"val\.json"):
        module.setup("fit")


def module_of_a_detector(tau=1.0, **settings):
    prior = PriorCorrection(tau=tau)
    model = build_tiny(synthetic_loss_weight=0.5, **settings)
    return InstanceSegmentationModule(model=model, optimizer=torch.optim.SGD, prior_correction=prior)


def test_the_prior_is_that_of_the_instances_trained_on(monkeypatch):
    """Squares (1), discs (2) and bars (3); the second image, of a bar and a disc, is synthetic."""
    module, (images, targets), checkpoint = module_of_a_detector(), draw_shapes(), {}
    targets[1]["is_synthetic"] = True
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    for _ in range(2):
        module.training_step((images, targets), 0)
    assert all(key.startswith("model.") for key in module.state_dict())
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["class_counts"].tolist() == [2.0, 3.0, 1.0]
    resumed = module_of_a_detector()
    resumed.on_load_checkpoint(checkpoint)
    categories = Categories(
        Category(n, str(n), instance_count=count) for n, count in ((1, 8), (2, 3), (3, 1))
    )
    resumed.correct_prior(categories)
    expected = [math.log((8 / 12) / (2 / 6)), math.log((3 / 12) / (3 / 6)), math.log((1 / 12) / (1 / 6))]
    assert resumed._heads.class_shift.tolist() == pytest.approx(expected)


def test_what_is_not_learnt_by_its_class_counts_for_no_prior():
    module = module_of_a_detector(synthetic_losses=("boxes", "masks"))
    _, targets = draw_shapes()
    targets[1]["is_synthetic"] = True
    module._count_classes(targets)
    assert module._class_counts.tolist() == [1.0, 1.0, 0.0]


def test_a_prior_that_cannot_be_corrected_is_told():
    with pytest.raises(ValueError, match=r"prior_correction\.tau=0\.5 needs a detector of .*, got Losses"):
        InstanceSegmentationModule(
            model=Losses(1.0), optimizer=torch.optim.SGD, prior_correction=PriorCorrection(tau=0.5)
        )
    old = module_of_a_detector(tau=0.5)
    old.on_load_checkpoint({})  # of a version that did not count
    with pytest.raises(ValueError, match=r"tau=0\.5 needs to know the classes trained on, this checkpoint"):
        old.correct_prior(Categories([Category(1, "square", instance_count=3)]))
