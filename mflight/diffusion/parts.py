"""One model of a checkpoint: which files hold its weights, whether they are its own, how precise they are."""

import json
import logging
import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from mflight.diffusion.weight_files import WEIGHT_FILE, find_weight_files

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]

_TOWER_PREFIX = "text_model."  # of a CLIP tower's keys; transformers reads files with and without it
_NUM_NAMED = 2


@dataclass(frozen=True)
class Part:
    """A UNet, a VAE or a text tower of a checkpoint.

    Attributes:
        folder: where it lies; its name is the part's.
        model_class: of diffusers or transformers, which loads it.
    """

    folder: Path
    model_class: type[nn.Module]

    @property
    def name(self) -> str:
        """Of its folder, such as ``unet``."""
        return self.folder.name

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that are loaded; where there are several variants, the one without a name, else ``fp16``.

        Raises:
            FileNotFoundError: if there is none.
        """
        files = find_weight_files(self.folder)
        if not files:
            raise FileNotFoundError(
                f"{self.name} must hold weights named as diffusers and transformers do (*.safetensors or "
                f"*.bin), {str(self.folder)!r} holds {sorted(path.name for path in self.folder.iterdir())}"
            )
        return files

    def check_class(self, index: Mapping[str, Any]) -> None:
        """Compare its class with what the checkpoint and its own config say it is.

        Args:
            index: the checkpoint's ``model_index.json``.

        Raises:
            ValueError: if one of them names a class of another make.
        """
        wanted = self.model_class.__name__
        _library, indexed = index.get(self.name) or (None, None)
        if indexed != wanted:
            raise ValueError(f"{self.name} must be a {wanted}, {self._place} has a {indexed}")
        config = json.loads((self.folder / "config.json").read_text())
        if issubclass(self.model_class, ModelMixin):
            own = config.get("_class_name", wanted)
        else:  # an architecture of transformers is a model's, or that of a larger one which holds it
            is_clip = str(config.get("model_type", "clip")).startswith("clip")
            own = wanted if is_clip else config["model_type"]
        if own != wanted:
            raise ValueError(
                f"{self.name} must be a {wanted}, as model_index.json says; its config.json in "
                f"{self._place} says {own}"
            )

    def skeleton(self) -> nn.Module:
        """Build the model without its weights, and compare those in its files with it by name and shape.

        Returns:
            The model, on the device ``meta``.

        Raises:
            ValueError: if weights are missing or of other shapes, or if a file cannot be read.
        """
        with torch.device("meta"):
            if issubclass(self.model_class, ModelMixin):
                model = self.model_class.from_config(self.model_class.load_config(self.folder))
            else:
                model = self.model_class(self.model_class.config_class.from_pretrained(self.folder))
        held: dict[str, Shape] = {}
        for path in self.weight_files:
            held |= _read_shapes(path)
        if isinstance(model, ModelMixin):
            held = model._fix_state_dict_keys_on_load(held)  # Stable Diffusion 1.4's VAE has older names
        wanted = {_plain(key): tuple(value.shape) for key, value in model.state_dict().items()}
        held = {_plain(key): shape for key, shape in held.items()}
        self._check_keys(wanted.keys() - held.keys(), held.keys() - wanted.keys(), len(wanted))
        for key in sorted(wanted):
            if held[key] != wanted[key]:
                raise ValueError(
                    f"{self.name} wants {key} of shape {list(wanted[key])}, {self._place} has it of shape "
                    f"{list(held[key])}"
                )
        return model.eval().requires_grad_(False)

    def load(self, dtype: torch.dtype) -> nn.Module:
        """Load the model, in evaluation mode and without gradients.

        Args:
            dtype: precision of the weights.

        Returns:
            The model, on the CPU.

        Raises:
            ValueError: if weights are missing, or if one is not finite.
        """
        variant = WEIGHT_FILE.fullmatch(self.weight_files[0].name)["variant"]
        settings: dict[str, Any] = {"variant": variant, "output_loading_info": True}
        if issubclass(self.model_class, ModelMixin):
            settings |= {"torch_dtype": dtype, "low_cpu_mem_usage": False}  # the latter would need accelerate
        else:
            settings["dtype"] = dtype
        model, info = self.model_class.from_pretrained(self.folder, **settings)
        self._check_keys(info["missing_keys"], (), len(model.state_dict()))
        for key, weight in model.named_parameters():
            if not torch.isfinite(weight).all():
                raise ValueError(f"{self.name} must have finite weights, {key} in {self._place} has others")
        return model.eval().requires_grad_(False)

    def _check_keys(self, missing: Collection[str], unknown: Collection[str], num_wanted: int) -> None:
        if missing:
            instead = f"; it has {_first(unknown)} instead" if unknown else ""
            raise ValueError(
                f"{self.name} must have all of its {num_wanted} weights, {self._place} lacks {len(missing)} "
                f"of them, such as {_first(missing)}{instead}"
            )
        if unknown := [key for key in unknown if not key.endswith("position_ids")]:
            logger.warning(
                "%s: %d weights in %s are not its own and are left out, such as %s",
                *(self.name, len(unknown), self._place, _first(unknown)),
            )

    @property
    def _place(self) -> str:
        return repr(str(self.folder))


def choose_dtype(dtype: torch.dtype | str, device: torch.device | str) -> torch.dtype:
    """Return the type of torch that is meant.

    Args:
        dtype: a floating-point type, its name (``"float16"``), or ``"auto"``: bfloat16 on a device with
            units for it (NVIDIA from compute capability 8.0 on; CPUs with AMX or AVX512-BF16), float32 on any
            other.
        device: where the weights will be.

    Returns:
        The type.

    Raises:
        ValueError: if ``dtype`` is not a floating-point type.
    """
    if dtype == "auto":
        return torch.bfloat16 if _has_bfloat16_units(torch.device(device)) else torch.float32
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ValueError(f"dtype must be 'auto' or name a floating-point type of torch, got {dtype!r}")
    return chosen


def _has_bfloat16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        units = torch.cpu.get_capabilities()
        return bool(units.get("amx_bf16") or units.get("avx512_bf16"))
    return False


def _read_shapes(path: Path) -> dict[str, Shape]:
    """Names and shapes of the weights in a file; those of a ``.bin`` are mapped, not read."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        state = torch.load(path, map_location="meta", weights_only=True)
        return {key: tuple(value.shape) for key, value in state.items()}
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{str(path)!r} must hold the weights of a model, its {path.stat().st_size:,} bytes cannot be "
            f"read as such ({said})"
        ) from error


def _plain(key: str) -> str:
    return key.removeprefix(_TOWER_PREFIX)


def _first(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:_NUM_NAMED])
