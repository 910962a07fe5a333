"""Train text encoder and UNet of the mini checkpoint, step by step, resumable at any saved step.

Two trainings, each on a core of its own, make one: whenever one saves, it first takes the mean of its weights
and those that the other saved last. None waits for the other.

Source:
    Lian et al., "Asynchronous decentralized parallel SGD", arXiv:1710.06952.
"""

import copy
import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPTokenizer

from mflight.minilvis.text_to_image import SceneBatch, TextToImage, draw_batch

_EMA_DECAY = 0.998
_WARMUP_STEPS = 100


class _Steps(Dataset):
    """The batches of steps ``start`` to ``stop``, each drawn from (seed, step) alone."""

    def __init__(self, tokenizer: CLIPTokenizer, *, start: int, stop: int, batch_size: int, seed: int):
        self.tokenizer, self.start, self.stop = tokenizer, start, stop
        self.batch_size, self.seed = batch_size, seed

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __getitem__(self, index: int) -> SceneBatch:
        return draw_batch(
            self.batch_size, self.tokenizer, (self.seed, self.start + index), unconditional_ratio=0.12
        )


class TextToImageTrainer:
    """Holds the model, its moving average and the optimizer; the average is what is shipped.

    Args:
        tokenizer: of the captions.
        state_file: where the training is saved, and from where it goes on.
        peer_file: the ``state_file`` of a second training of the same model with another seed, if any.
        batch_size: scenes in a step.
        seed: of weights, scenes, timesteps and noise.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        state_file: Path,
        *,
        peer_file: Path | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ):
        torch.manual_seed(seed)
        self.tokenizer, self.state_file, self.peer_file = tokenizer, state_file, peer_file
        self.batch_size, self.seed = batch_size, seed
        self.model = TextToImage(len(tokenizer))
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.step = 0
        self._peer_saved_at = 0.0
        self._first_step = 0  # the rate rises from here: later than 0 where shipped weights are trained on
        if state_file.exists():
            self._load()

    def train(
        self, *, num_steps: int, learning_rate: float, cooldown_steps: int = 0, save_every_steps: int = 100
    ) -> None:
        """Train up to step ``num_steps``; the rate rises, stays, falls over the last ``cooldown_steps``."""
        self.model.unet.to(memory_format=torch.channels_last)
        steps = _Steps(
            self.tokenizer, start=self.step, stop=num_steps, batch_size=self.batch_size, seed=self.seed
        )
        batches = DataLoader(steps, batch_size=None, num_workers=0)
        smooth: dict[str, float] = {}
        progress = tqdm(batches, desc="text to image", initial=self.step, total=num_steps, mininterval=10)
        for batch in progress:
            rate = learning_rate * min(1.0, (self.step - self._first_step + 1) / _WARMUP_STEPS)
            if cooldown_steps:
                rate *= min(1.0, (num_steps - self.step) / cooldown_steps)
            losses = self._train_step(batch, rate)
            for name, loss in losses.items():
                smooth[name] = 0.98 * smooth.get(name, loss) + 0.02 * loss
            progress.set_postfix({name: f"{loss:.4f}" for name, loss in smooth.items()}, refresh=False)
            if self.step % save_every_steps == 0 or self.step >= num_steps:
                self._meet_peer()
                self.save()
            if self.step >= num_steps:
                break

    def start_from(self, text_encoder: nn.Module, unet: nn.Module, *, step: int) -> None:
        """Begin a new training with the weights of a checkpoint that was trained for ``step`` steps."""
        for mine in (self.model, self.average):
            mine.text_encoder.load_state_dict(text_encoder.state_dict())
            mine.unet.load_state_dict(unet.state_dict())
        self.step = self._first_step = step

    def _train_step(self, batch: SceneBatch, rate: float) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.model(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(_EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return {name: loss.item() for name, loss in losses.items()}

    def _meet_peer(self) -> None:
        """Take the mean with what the peer saved since the last meeting, and catch up with its step."""
        if self.peer_file is None or not self.peer_file.exists():
            return
        saved_at = self.peer_file.stat().st_mtime
        if saved_at == self._peer_saved_at:
            return
        peer = torch.load(self.peer_file, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for mine, name in ((self.model, "model"), (self.average, "average")):
                for key, weights in mine.state_dict().items():
                    if weights.is_floating_point():
                        weights.lerp_(peer[name][key], 0.5)
        self._peer_saved_at = saved_at
        self.step = max(self.step, peer["step"])

    def save(self) -> None:
        """Write the whole state, or leave the former one untouched."""
        state = {
            "step": self.step,
            "first_step": self._first_step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_file)

    def _load(self) -> None:
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self._first_step = state["step"], state.get("first_step", 0)
