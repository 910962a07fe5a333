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
        outlines=torch.zeros(1, 16, 2, 2),
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
    assert first.outlines.shape == (4, 16, *first.latents.shape[-2:])
    torch.testing.assert_close(first.outlines.mean(dim=1), first.object_masks.sum(dim=1))  # of whole pixels


def test_the_losses_are_finite_and_their_sum_is_weighted(tokenizer):
    torch.manual_seed(0)
    model = TextToImage(len(tokenizer))
    batch = draw_batch(2, tokenizer, (0, 3), 0.0)
    losses = model(batch, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(loss) for loss in losses.values())
    by_hand = losses["velocity"] + 0.1 * losses["token"] + 0.05 * losses["pixel"] + 0.3 * losses["outline"]
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


def test_high_noise_is_drawn_more_often(tokenizer):
    model = TextToImage(len(tokenizer))
    timesteps = model._draw_timesteps(20_000, torch.Generator().manual_seed(0))
    assert timesteps.min() >= 0 and timesteps.max() == 999
    below = [(timesteps < bound).float().mean().item() for bound in (300, 600)]
    assert below == pytest.approx([0.3**1.8, 0.6**1.8], abs=0.01)


def test_two_trainings_meet_in_the_mean_and_at_the_later_step(tokenizer, tmp_path):
    mine, peer = tmp_path / "mine.pt", tmp_path / "peer.pt"
    other = TextToImageTrainer(tokenizer, peer, batch_size=2, seed=2)
    other.train(num_steps=2, learning_rate=1e-3)
    alone = TextToImageTrainer(tokenizer, mine, batch_size=2, seed=1)
    alone.train(num_steps=1, learning_rate=1e-3)
    shared = TextToImageTrainer(tokenizer, tmp_path / "shared.pt", peer_file=peer, batch_size=2, seed=1)
    shared.train(num_steps=1, learning_rate=1e-3)
    assert shared.step == 2
    for name in ("model", "average"):
        parts = [getattr(trainer, name).parameters() for trainer in (shared, alone, other)]
        for met, first, second in zip(*parts, strict=True):
            torch.testing.assert_close(met, (first + second) / 2)
    shared.train(num_steps=3, learning_rate=1e-3)  # nothing new from the peer: it goes on alone
    assert shared.step == 3
