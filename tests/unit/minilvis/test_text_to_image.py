import pytest
import torch

from mflight.minilvis.captions import MAX_LENGTH
from mflight.minilvis.text_to_image import SceneBatch, TextToImage, _grounding, draw_batch
from mflight.minilvis.text_to_image_training import TextToImageTrainer


def one_object(inside):
    """A batch of one object on a 2 x 2 grid; the second of three tokens is its name."""
    return SceneBatch(
        latents=torch.zeros(1, 8, 2, 2),
        input_ids=torch.zeros(1, 3, dtype=torch.int64),
        object_masks=torch.tensor(inside).view(1, 1, 2, 2),
        name_tokens=torch.tensor([[[False, True, False]]]),
    )


def test_the_grounding_losses_of_a_hand_example():
    batch = one_object([1.0, 0.0, 0.0, 0.0])
    attention = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.9, 0.0, 0.1], [0.9, 0.0, 0.1]])[None]
    losses = _grounding([attention], batch)
    assert losses["token"].item() == pytest.approx((1 - 0.3 / 0.4) ** 2)
    by_hand = -(torch.tensor([0.3, 0.9, 1.0, 1.0])).log().mean().item()
    assert losses["pixel"].item() == pytest.approx(by_hand, abs=1e-4)


def test_the_token_loss_is_zero_when_all_attention_is_inside():
    batch = one_object([1.0, 1.0, 0.0, 0.0])
    attention = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])[None]
    assert _grounding([attention], batch)["token"].item() == pytest.approx(0.0, abs=1e-10)


def test_scenes_without_a_caption_have_no_grounding_loss(tokenizer):
    batch = draw_batch(2, tokenizer, (0, 0), unconditional_ratio=1.0)
    assert not batch.name_tokens.any() and not batch.object_masks.any()
    uniform = torch.full((2, batch.latents[0, 0].numel(), MAX_LENGTH), 1 / MAX_LENGTH)
    assert [loss.item() for loss in _grounding([uniform], batch).values()] == [0.0, 0.0]


def test_a_batch_is_a_function_of_its_seed_and_marks_the_names(tokenizer):
    first, again, other = (draw_batch(4, tokenizer, (0, step), 0.0) for step in (1, 1, 2))
    assert torch.equal(first.latents, again.latents) and torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    assert first.name_tokens[:, 0].any(dim=-1).all()  # the first object is named in every caption
    assert not first.name_tokens[..., 0].any()  # the begin token is no name
    assert first.object_masks.shape[-2:] == first.latents.shape[-2:]


def test_the_losses_are_finite_and_their_sum_is_weighted(tokenizer):
    torch.manual_seed(0)
    model = TextToImage(len(tokenizer), token_weight=0.1, pixel_weight=0.05)
    batch = draw_batch(2, tokenizer, (0, 3), 0.0)
    losses = model(batch, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(loss) for loss in losses.values())
    by_hand = losses["velocity"] + 0.1 * losses["token"] + 0.05 * losses["pixel"]
    assert losses["total"].item() == pytest.approx(by_hand.item())
    assert losses["velocity"].item() == pytest.approx(1.0, abs=0.5)  # of an untrained model


def test_a_resumed_training_equals_one_without_interruption(tokenizer, tmp_path):
    def trainer(name):
        return TextToImageTrainer(tokenizer, tmp_path / name, batch_size=2, seed=1)

    whole = trainer("whole.pt")
    whole.train(num_steps=3, learning_rate=1e-3, save_every_steps=3)
    trainer("halves.pt").train(num_steps=2, learning_rate=1e-3)
    resumed = trainer("halves.pt")
    assert resumed.step == 2
    resumed.train(num_steps=3, learning_rate=1e-3)
    for mine, theirs in ((resumed.model, whole.model), (resumed.average, whole.average)):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert trainer("halves.pt").step == 3
