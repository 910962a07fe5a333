"""Find a checkpoint in diffusers' format, tell its family, and build its scheduler."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel

from mflight.diffusion.conditioning import (
    DoubleTowerConditioner,
    SingleTowerConditioner,
    TextConditioner,
)
from mflight.diffusion.parts import Part


@dataclass(frozen=True)
class Family:
    """What sets a family of checkpoints apart.

    Attributes:
        conditioner: its text towers.
        addition_embed_type: what its UNet is told besides the token embeddings, in the words of its config.
        obeys_force_upcast: whether the VAE's ``force_upcast`` is meant: SDXL's overflows in float16. Older
            checkpoints do not name it, and diffusers then reads it as true.
        rounds_pixels: whether 8-bit pixels are rounded; the published program truncates those of Stable
            Diffusion 1.x and 2.x and rounds those of SDXL.
    """

    conditioner: type[TextConditioner]
    addition_embed_type: str | None
    obeys_force_upcast: bool
    rounds_pixels: bool

    @property
    def part_classes(self) -> dict[str, type]:
        """Class of each model, by its folder in a checkpoint; the text towers first."""
        return {**self.conditioner.TOWERS, "unet": UNet2DConditionModel, "vae": AutoencoderKL}


SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")

CLASSES_FILE = "classes.json"
"""Beside ``model_index.json``: a list of names, of a checkpoint that was trained on these classes alone."""

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(
        SingleTowerConditioner, None, obeys_force_upcast=False, rounds_pixels=False
    ),
    "StableDiffusionXLPipeline": Family(
        DoubleTowerConditioner, "text_time", obeys_force_upcast=True, rounds_pixels=True
    ),
}
"""By the pipeline class that a checkpoint's ``model_index.json`` names."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose family is supported and whose parts are all there.

    Attributes:
        folder: where its files lie.
        index: its ``model_index.json``.
    """

    folder: Path
    index: dict[str, Any]

    @property
    def family(self) -> Family:
        """What sets its family apart."""
        return FAMILIES[self.index["_class_name"]]

    @property
    def parts(self) -> dict[str, Part]:
        """Its models, by name."""
        return {name: Part(self.folder / name, of) for name, of in self.family.part_classes.items()}

    @property
    def known_classes(self) -> tuple[str, ...] | None:
        """Names of the only classes that it can draw; ``None`` where it says nothing about that."""
        file = self.folder / CLASSES_FILE
        return tuple(json.loads(file.read_text())) if file.is_file() else None


def find_checkpoint(checkpoint: str) -> Checkpoint:
    """Find a checkpoint; the family is checked before any weights are fetched, and none are read.

    A folder that does not exist or is not in diffusers' format is a ``FileNotFoundError``; a checkpoint that
    the hub does not have, of another family, in one file, or with a part of another class than the family's,
    a ``ValueError``.

    Args:
        checkpoint: a folder in diffusers' format, or a hub id such as ``CompVis/stable-diffusion-v1-4``.

    Returns:
        The checkpoint's files, fetched from the hub (or its cache) when it is a hub id.
    """
    folder = Path(checkpoint).expanduser()
    _check_is_folder(folder)
    if not folder.is_dir():
        folder = _fetch(checkpoint)
    _require(folder, "model_index.json")
    index = DiffusionPipeline.load_config(folder)
    _check_family(index, str(folder))
    found = Checkpoint(folder, index)
    for name in (*(f"{part}/config.json" for part in found.parts), "scheduler"):
        _require(folder, name)
    for name in found.family.conditioner.TOKENIZER_FOLDERS:
        _require(folder, name)
    for part in found.parts.values():
        part.check_class(index)
    return found


def build_scheduler(
    checkpoint: Checkpoint, name: str | None = None, settings: Mapping[str, Any] | None = None
) -> SchedulerMixin:
    """Build a scheduler from the configuration of the checkpoint's own.

    A class that is no scheduler of diffusers, lacks a package, or steps in another way than
    ``StableDiffusionPipeline`` wants (those of flow matching, inpainting or discrete tokens), is a
    ``ValueError``.

    Args:
        checkpoint: whose scheduler.
        name: class name of a diffusers scheduler; ``None`` for the checkpoint's own.
        settings: what differs from the checkpoint's.

    Returns:
        The scheduler.

    Raises:
        ValueError: if a setting of the scheduler does not exist.
    """
    own_name = checkpoint.index["scheduler"][1]
    scheduler_class = _find_scheduler(name or own_name)
    known = [key for key in inspect.signature(scheduler_class.__init__).parameters if key != "self"]
    for key in settings or {}:
        if key not in known:
            raise ValueError(f"{scheduler_class.__name__} has no setting {key!r}, it has {known}")
    own_config = getattr(diffusers, own_name).load_config(checkpoint.folder, subfolder="scheduler")
    scheduler = scheduler_class.from_config(own_config, **(settings or {}))
    _check_capabilities(scheduler)
    return scheduler


def _find_scheduler(name: str) -> type[SchedulerMixin]:
    """A scheduler class of diffusers; where a package of it is missing, diffusers has a stand-in for it."""
    found = getattr(diffusers, name, None)
    if missing := [one for one in getattr(found, "_backends", ()) if find_spec(one) is None]:
        raise ValueError(f"scheduler {name!r} needs what is not installed: {', '.join(missing)}")
    if not (inspect.isclass(found) and issubclass(found, SchedulerMixin)):
        raise ValueError(f"scheduler must name a scheduler class of diffusers, got {name!r}")
    return found


def _check_capabilities(scheduler: SchedulerMixin) -> None:
    """Refuse a scheduler that does not step as those of ``StableDiffusionPipeline`` do."""
    wanted = ("init_noise_sigma", "scale_model_input", "set_timesteps", "step")
    lacking = [name for name in wanted if not hasattr(scheduler, name)]
    if not lacking:
        given = dict.fromkeys(("model_output", "timestep", "sample"))
        try:
            inspect.signature(scheduler.step).bind(**given)
        except TypeError:
            lacking = [f"step({', '.join(given)})"]
    if lacking:
        raise ValueError(
            f"scheduler must work as those of StableDiffusionPipeline do, {type(scheduler).__name__} is "
            f"without {', '.join(lacking)}"
        )


def _fetch(checkpoint: str) -> Path:
    """The folder of a hub id; its index is read first, so that a wrong family costs no download."""
    looks_like_hub_id = checkpoint.count("/") == 1 and not checkpoint.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise FileNotFoundError(
            f"checkpoint must be a folder or a hub id (owner/name), no folder {checkpoint!r}"
        )
    try:
        index = DiffusionPipeline.load_config(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {checkpoint!r} is no folder, nor had from the hub: {_first_line(error)}"
        ) from error
    _check_family(index, checkpoint)
    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    try:
        folder = Path(DiffusionPipeline.download(checkpoint, **unused))
        if not any((folder / "unet").glob("*.[sb]*")):  # neither .safetensors nor .bin without a variant
            folder = Path(DiffusionPipeline.download(checkpoint, variant="fp16", **unused))
        return folder
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {checkpoint!r} could not be had from the hub: {_first_line(error)}"
        ) from error


def _check_is_folder(place: Path) -> None:
    """Refuse weights in one file, and a folder that holds nothing else, with the way to convert them."""
    file = place
    if place.is_dir() and not (place / "model_index.json").exists():
        file = next((path for path in sorted(place.iterdir()) if path.suffix in SINGLE_FILE_SUFFIXES), place)
    if file.suffix not in SINGLE_FILE_SUFFIXES or file.is_dir():
        return
    if not file.is_file():
        raise FileNotFoundError(
            f"checkpoint must be a folder or a hub id (owner/name), no file {str(file)!r}"
        )
    raise ValueError(
        f"checkpoint must be a folder in diffusers' format, {str(file)!r} holds all parts in one file. "
        "Convert it once, with the class of its family (StableDiffusionXLPipeline for XL), and name FOLDER: "
        'python -c "from diffusers import StableDiffusionPipeline; '
        f"StableDiffusionPipeline.from_single_file({str(file)!r}).save_pretrained('FOLDER')\" "
        "(configs and tokenizer come from the hub; offline, config='OTHER' names a folder that has them)"
    )


def _check_family(index: Mapping[str, Any], place: str) -> None:
    family = index.get("_class_name")
    if family not in FAMILIES:
        raise ValueError(
            f"the checkpoint must be of a family in {tuple(FAMILIES)} (Stable Diffusion 1.x, 2.x and XL), "
            f"got {family!r} in {place!r}"
        )


def _require(folder: Path, name: str) -> None:
    if not (folder / name).exists():
        raise FileNotFoundError(
            f"a checkpoint in diffusers' format must hold {name}, {str(folder)!r} does not"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
