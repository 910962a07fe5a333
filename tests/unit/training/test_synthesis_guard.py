"""A run that synthesis has left says so and ends; real trainers, generators and pools."""

import functools

import lightning as L
import pytest

from mflight.mistakes import Mistake
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.stream import PoolStream
from mflight.training.callbacks.synthesis_guard import SynthesisGuard
from tests.unit.synthesis.squares import generator_settings, make_sample
from tests.unit.training.foreign import ForeignModule

NUM_STEPS = 12


@pytest.fixture
def train(tmp_path, build_datamodule):
    """Train on a pool of ``num_samples``, each used twice at most, beside a generator that fails next."""

    def run(num_samples=0, synthesizer=(), wait=True, **guard):
        pool = tmp_path / "pool"
        with PoolWriter(pool, "before") as writer:
            for index in range(num_samples):
                writer.append(make_sample(index, size_px=64, category_id=5), index=index)
        data = build_datamodule(
            synthetic_ratio=0.5,
            stream=functools.partial(PoolStream, pool_dir=pool, max_reuse=2),
            generator=generator_settings(
                pool, {"error_at": num_samples, **dict(synthesizer)}, max_restarts=0, backoff_s=1.0
            ),
            poll_s=0.05,
            wait=wait,
        )
        watch = SynthesisGuard(run_dir=tmp_path / "run", **guard)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=NUM_STEPS,
            limit_val_batches=0,
            logger=False,
            callbacks=[watch],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        try:
            trainer.fit(ForeignModule(), datamodule=data)
        finally:
            trainer.counts = data.counts
            run.trainer, run.watch, run.checkpoint = (
                trainer,
                watch,
                tmp_path / "run" / "checkpoints" / "last.ckpt",
            )

    return run


def test_a_run_without_generators_and_samples_ends_with_the_reason_and_a_checkpoint(tmp_path, train):
    with pytest.raises(Mistake) as caught:
        train()
    sentence = str(caught.value)
    assert (
        f"no generator is left and the pool {tmp_path / 'pool'} is empty: generator w0 ended with" in sentence
    )
    assert "request 0 is cursed" in sentence and "synthesis.when_dead=go_on" in sentence
    step = train.trainer.global_step
    assert step < NUM_STEPS and f"Stopped at step {step};" in sentence
    assert train.checkpoint.exists() == (step > 0)


def test_what_the_pool_holds_is_used_before_the_run_ends(train):
    with pytest.raises(Mistake, match="all of its 2 samples are used up: generator w0"):
        train(num_samples=2)
    assert train.trainer.counts.fresh + train.trainer.counts.reused == 4
    assert train.trainer.global_step >= 4 and train.checkpoint.exists()


def test_a_run_that_goes_on_with_real_images_says_in_the_end_what_it_was(train):
    train(when_dead="go_on")
    assert train.trainer.global_step == NUM_STEPS
    with pytest.raises(Mistake) as caught:
        train.watch.raise_verdict()
    assert f"real images filled {NUM_STEPS} of its {NUM_STEPS} synthetic slots" in str(caught.value)
    assert "request 0 is cursed" in str(caught.value)


@pytest.mark.parametrize(
    ("num_samples", "max_fallback_ratio", "is_refused"), [(0, 1.0, False), (4, 0.5, False), (2, 0.5, True)]
)
def test_the_setting_says_how_many_fallbacks_are_too_many(train, num_samples, max_fallback_ratio, is_refused):
    """Of 12 slots, 4 samples fill 8, and 2 samples 4."""
    train(num_samples=num_samples, when_dead="go_on", max_fallback_ratio=max_fallback_ratio)
    assert (train.watch.verdict is not None) == is_refused


def test_a_generator_that_is_too_slow_is_told_in_the_end(train):
    train(synthesizer={"error_at": None, "seconds": 60.0}, wait=False)
    assert "0 images were drawn meanwhile: train longer" in train.watch.verdict


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="'perhaps'"):
        SynthesisGuard(run_dir=tmp_path, when_dead="perhaps")
    with pytest.raises(ValueError, match=r"1\.5"):
        SynthesisGuard(run_dir=tmp_path, max_fallback_ratio=1.5)
