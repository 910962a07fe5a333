"""Load a Stable Diffusion checkpoint with stock diffusers."""

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizerFast
from transformers.utils import logging as transformers_logging

SUPPORTED_FAMILIES = ("StableDiffusionPipeline",)
WEIGHT_FOLDERS = ("text_encoder", "unet", "vae")
MAX_REMEMBERED_PROMPTS = 256


@dataclass
class LatentDiffusion:
    """The parts of a text-to-image latent diffusion model.

    Attributes:
        checkpoint: folder or hub id, as it was asked for.
        folder: where its files lie.
        tokenizer: fast CLIP tokenizer.
        text_encoder: CLIP text tower.
        unet: predicts noise (or v) of latents ``[B, C, h, w]``.
        vae: its decoder turns latents into images.
        scheduler: never stepped itself; each denoising run works on a copy.
    """

    checkpoint: str
    folder: Path
    tokenizer: CLIPTokenizerFast
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: SchedulerMixin
    _embeds_of_ids: OrderedDict[tuple[int, ...], Tensor] = field(default_factory=OrderedDict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights; latents, guidance and blending are float32 whatever it is."""
        return self.unet.dtype

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.unet.config.in_channels

    @property
    def latent_stride_px(self) -> int:
        """Pixels per latent cell: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def max_prompt_tokens(self) -> int:
        """Length of the text encoder's input: 77 for CLIP."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the names and bytes of the weights files; seconds of reading, once, for a large model."""
        digest = hashlib.sha256()
        for name in WEIGHT_FOLDERS:
            part = self.folder / name
            for path in sorted(part.glob("*.safetensors")) or sorted(part.glob("*.bin")):
                digest.update(f"{name}/{path.name}".encode())
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    @torch.inference_mode()
    def encode_text(self, input_ids: tuple[int, ...]) -> Tensor:
        """Last hidden state of the text encoder, ``[T, D]``, without an attention mask.

        Each text is encoded by itself, so that it never depends on what else is drawn, and remembered.

        Args:
            input_ids: ``T`` token ids, padded.

        Returns:
            The prompt embedding, in the model's precision and on its device.
        """
        if input_ids not in self._embeds_of_ids:
            batch = torch.tensor([input_ids], device=self.device)
            self._embeds_of_ids[input_ids] = self.text_encoder(batch)[0][0]
            if len(self._embeds_of_ids) > MAX_REMEMBERED_PROMPTS:
                self._embeds_of_ids.popitem(last=False)
        self._embeds_of_ids.move_to_end(input_ids)
        return self._embeds_of_ids[input_ids]

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents into 8-bit images, one at a time, so that memory does not grow with the batch.

        Args:
            latents: ``float32[B, C, h, w]``.

        Returns:
            ``uint8[B, H, W, 3]`` on the CPU; values are truncated, not rounded, as published.
        """
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        images = []
        for canvas in latents.to(self.vae.dtype).split(1):
            pixels = self.vae.decode(canvas).sample.float() / 2 + 0.5
            images.append((pixels.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu())
        return torch.cat(images)


def load_pipeline(
    checkpoint: str,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    scheduler: str | None = None,
    scheduler_settings: Mapping[str, Any] | None = None,
) -> LatentDiffusion:
    """Load a checkpoint of the Stable Diffusion 1.x or 2.x family.

    A folder that does not exist, or is not in diffusers' format, is a ``FileNotFoundError``. A checkpoint
    that the hub does not have or that is of another family, and a scheduler or a setting of it that does not
    exist, are a ``ValueError``.

    Args:
        checkpoint: a folder in diffusers' format, or a hub id such as ``CompVis/stable-diffusion-v1-4``.
        dtype: precision of the weights, or its name (``"bfloat16"``).
        device: where the model runs.
        scheduler: class name of a diffusers scheduler, built from the configuration of the checkpoint's own;
            ``None`` keeps that one.
        scheduler_settings: settings of the scheduler that differ from the checkpoint's.

    Returns:
        The model, in evaluation mode and without gradients.

    Raises:
        ValueError: if ``dtype`` is not a floating-point type.
    """
    weights_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(weights_dtype, torch.dtype) or not weights_dtype.is_floating_point:
        raise ValueError(f"dtype must name a floating-point type of torch, got {dtype!r}")
    folder = _find_folder(checkpoint)
    index = _read_index(folder)
    settings = {"torch_dtype": weights_dtype, "low_cpu_mem_usage": False}  # the latter would need accelerate
    with _no_loading_bars():
        models = {
            "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=weights_dtype),
            "unet": UNet2DConditionModel.from_pretrained(folder / "unet", **settings),
            "vae": AutoencoderKL.from_pretrained(folder / "vae", **settings),
        }
    for model in models.values():
        model.to(device).eval().requires_grad_(False)
    return LatentDiffusion(
        checkpoint=checkpoint,
        folder=folder,
        tokenizer=CLIPTokenizerFast.from_pretrained(folder / "tokenizer"),
        scheduler=_build_scheduler(folder, index["scheduler"][1], scheduler, dict(scheduler_settings or {})),
        **models,
    )


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each model."""
    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()


def _find_folder(checkpoint: str) -> Path:
    """The checkpoint's folder, fetched from the hub (or its cache) when it is a hub id."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    looks_like_hub_id = checkpoint.count("/") == 1 and not checkpoint.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise FileNotFoundError(
            f"checkpoint must be a folder or a hub id (owner/name), no folder {checkpoint!r}"
        )
    try:
        unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
        return Path(DiffusionPipeline.download(checkpoint, **unused))
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {checkpoint!r} is no folder, nor had from the hub: {error}") from error


def _read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json``, after a check of the family and of the parts."""
    for name in ("model_index.json", *(f"{part}/config.json" for part in WEIGHT_FOLDERS), "tokenizer"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"a checkpoint in diffusers' format must hold {name}, {str(folder)!r} does not"
            )
    index = DiffusionPipeline.load_config(folder)
    family = index.get("_class_name")
    if family not in SUPPORTED_FAMILIES:
        raise ValueError(
            f"the checkpoint must be of a family in {SUPPORTED_FAMILIES} (Stable Diffusion 1.x and 2.x), "
            f"got {family!r} in {str(folder)!r}"
        )
    return index


def _build_scheduler(
    folder: Path, own_name: str, name: str | None, settings: dict[str, Any]
) -> SchedulerMixin:
    """The named scheduler, or the checkpoint's own, configured as that is but for ``settings``."""
    scheduler_class = getattr(diffusers, name or own_name, None)
    if not (inspect.isclass(scheduler_class) and issubclass(scheduler_class, SchedulerMixin)):
        raise ValueError(f"scheduler must name a scheduler class of diffusers, got {name or own_name!r}")
    known = [key for key in inspect.signature(scheduler_class.__init__).parameters if key != "self"]
    for key in settings:
        if key not in known:
            raise ValueError(f"{scheduler_class.__name__} has no setting {key!r}, it has {known}")
    own_config = getattr(diffusers, own_name).load_config(folder, subfolder="scheduler")
    return scheduler_class.from_config(own_config, **settings)
