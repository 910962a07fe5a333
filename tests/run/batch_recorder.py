"""A callback that writes down what a run trains on, also when the run is killed."""

import json
from pathlib import Path
from typing import Any

import lightning as L


class BatchRecorder(L.Callback):
    """Appends a line for each step to ``batches-rank<k>.jsonl``: its number, its real and synthetic images.

    Args:
        folder: where the files lie.
    """

    def __init__(self, *, folder: str | Path):
        self._folder = Path(folder)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        _, targets = batch
        line = {
            "step": trainer.global_step,
            "real": [target["image_id"] for target in targets if not target["is_synthetic"]],
            "synthetic": [target["sample_id"] for target in targets if target["is_synthetic"]],
        }
        with batches_file(self._folder, trainer.global_rank).open("a") as file:
            file.write(json.dumps(line) + "\n")


def batches_file(folder: Path, rank: int = 0) -> Path:
    return folder / f"batches-rank{rank}.jsonl"


def read_batches(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Return what a rank has written down so far; a line that a kill has torn is left out."""
    path = batches_file(folder, rank)
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
