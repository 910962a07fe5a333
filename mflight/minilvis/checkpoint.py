"""Where the mini checkpoint lies."""

from pathlib import Path


def checkpoint_folder() -> str:
    """Find the checkpoint that the package carries.

    Returns:
        its folder, in the format of ``StableDiffusionPipeline``.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    folder = Path(__file__).parent / "checkpoint"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the mini checkpoint must lie in {folder}: "
            "make it with python -m mflight.minilvis.train_checkpoint"
        )
    return str(folder)
