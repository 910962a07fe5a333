"""From requests to labeled mosaics: draw, decode, label, filter."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, validate_call

from mflight.diffusion.attention import AttentionSettings
from mflight.diffusion.mosaic import Canvas, DenoisedCanvas, denoise_mosaic
from mflight.diffusion.pipeline import LatentDiffusion, NotFiniteError
from mflight.diffusion.tokens import LostNameError
from mflight.functional.masks import mask_to_annotation
from mflight.synthesis.filters import FilteredCanvas, FilteredRegion, RegionFilter, RejectionRule
from mflight.synthesis.labeler import AttentionLabeler
from mflight.synthesis.pool.packing import PoolSample
from mflight.synthesis.request import MosaicRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MosaicResult:
    """What came of one request.

    Attributes:
        request: the request.
        image: ``uint8[H, W, 3]``, RGB.
        regions: per region ``{"category_id", "box": [x1, y1, x2, y2] px, "rejected": None | rule name}``.
        annotations: per kept region ``{"category_id", "region", "bbox": [x, y, w, h] px, "area" px²,
            "segmentation": RLE}``.
        is_kept: whether the filter lets the canvas be used.
        seconds: this canvas's share of each stage of its batch: ``denoise``, ``decode``, ``label``.
        provenance: all that is needed to draw it again.
    """

    request: MosaicRequest
    image: np.ndarray
    regions: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    is_kept: bool
    seconds: dict[str, float]
    provenance: dict[str, Any]

    def sample(self) -> PoolSample | None:
        """The sample for the pool; ``None`` when the filter drops the canvas."""
        if not self.is_kept:
            return None
        return PoolSample(
            self.request.request_id, self.image, self.annotations, self.regions, self.provenance
        )


class MosaicSynthesizer:
    """Draws mosaics and labels their instances by the model's own attention.

    Args:
        pipeline: the diffusion model, from ``mflight.diffusion.pipeline.load_pipeline``.
        labeler: makes masks of attention.
        region_filter: decides which masks are good enough.
        num_inference_steps: steps of the scheduler.
        guidance_scale: weight of the prompt against the negative one, where a request sets none.
        attention: whose attention is kept, and which of it; ``None`` for the published choice with all tokens
            of the name.
        max_batch: most samples in one UNet call, both guidance halves counted; bounds the memory.
        window_variance: of the Gaussian windows that blend the regions, in squared region sizes.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        pipeline: LatentDiffusion,
        labeler: AttentionLabeler,
        region_filter: RegionFilter,
        num_inference_steps: Annotated[int, Field(ge=1)] = 50,
        guidance_scale: Annotated[float, Field(ge=0.0)] = 7.5,
        attention: AttentionSettings | None = None,
        max_batch: Annotated[int, Field(ge=2)] = 32,
        window_variance: Annotated[float, Field(gt=0.0)] = 0.01,
    ):
        self.pipeline = pipeline
        self.labeler = labeler
        self.region_filter = region_filter
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.attention = attention or AttentionSettings()
        self.max_batch = max_batch
        self.window_variance = window_variance

    def synthesize(self, requests: Sequence[MosaicRequest]) -> list[MosaicResult]:
        """Draw and label mosaics; each comes out the same whatever else is in the batch.

        A request with a name that is too long for the text encoder is not drawn but dropped, by the rule
        ``name_too_long``: the generator goes on with the next one. So is a canvas whose latents, attention or
        pixels are no finite numbers, by the rule ``not_finite``.

        Args:
            requests: what to draw.

        Returns:
            One result a request, in the same order; also for canvases that the filter drops.
        """
        lost = {index: names for index, r in enumerate(requests) if any(names := self._lost_names(r))}
        drawn = iter(self._draw([r for index, r in enumerate(requests) if index not in lost]))
        return [
            self._dropped(request, ["name_too_long" if is_lost else None for is_lost in lost[index]])
            if index in lost
            else next(drawn)
            for index, request in enumerate(requests)
        ]

    def _draw(self, requests: Sequence[MosaicRequest]) -> list[MosaicResult]:
        stopwatch = _Stopwatch(self.pipeline.device, share=1 / max(1, len(requests)))
        with stopwatch.stage("denoise"):
            denoised = self.denoise(requests)
        with stopwatch.stage("decode"):
            decoded = [self._decode_if_finite(canvas) for canvas in denoised]
        with stopwatch.stage("label"):
            triples = zip(requests, decoded, denoised, strict=True)
            sound = [triple for triple in triples if triple[1] is not None]
            verdicts = iter(self._judge(*zip(*sound, strict=True)) if sound else ())
        return [
            self._dropped(request, ["not_finite"] * len(request.names), dict(stopwatch.seconds))
            if image is None
            else self._result(request, image, next(verdicts), dict(stopwatch.seconds))
            for request, image in zip(requests, decoded, strict=True)
        ]

    def _decode_if_finite(self, canvas: DenoisedCanvas) -> np.ndarray | None:
        """The image of a canvas; ``None`` where the model has given what is no finite number."""
        given = [canvas.latents, *(each for maps in canvas.attention_maps for each in maps)]
        if not torch.stack([torch.isfinite(tensor).all() for tensor in given]).all():
            return None
        try:
            return self.decode(canvas)
        except NotFiniteError:
            return None

    def denoise(self, requests: Sequence[MosaicRequest]) -> list[DenoisedCanvas]:
        """Only the first stage: the latents and the attention maps of each request.

        Args:
            requests: what to draw.

        Returns:
            One denoised canvas a request.
        """
        return denoise_mosaic(
            self.pipeline,
            [self._to_canvas(request) for request in requests],
            num_inference_steps=self.num_inference_steps,
            attention=self.attention,
            max_batch=self.max_batch,
            window_variance=self.window_variance,
        )

    def decode(self, canvas: DenoisedCanvas) -> np.ndarray:
        """Only the second stage: the image ``uint8[H, W, 3]`` of a denoised canvas."""
        return self.pipeline.decode_latents(canvas.latents[None])[0].numpy()

    def describe(self, request: MosaicRequest) -> dict[str, Any]:
        """Provenance: the request, the checkpoint, the settings and the code version, as JSON types."""
        scheduler = self.pipeline.scheduler
        return {
            "request": request.to_dict(),
            "checkpoint": self.pipeline.checkpoint,
            "weights_sha256": self.pipeline.weights_sha256,
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
            "scheduler": type(scheduler).__name__,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scales": list(self._guidance_scales(request)),
            "attention": asdict(self.attention),
            "window_variance": self.window_variance,
            "mask_refiner": getattr(self.labeler.refiner, "checkpoint", None),
            "mflight_version": _mflight_version(),
        }

    def _lost_names(self, request: MosaicRequest) -> list[bool]:
        """Tell for each region whether the text encoder cannot hold its name; what it can is remembered."""
        lost = []
        for prompt in request.prompts:
            try:
                self.pipeline.text.encode_prompt(prompt, self.attention.token_rule)
                lost.append(False)
            except LostNameError as error:
                logger.warning("request %s is dropped: %s", request.request_id, error)
                lost.append(True)
        return lost

    def _dropped(
        self,
        request: MosaicRequest,
        rules: Sequence[RejectionRule | None],
        seconds: dict[str, float] | None = None,
    ) -> MosaicResult:
        """The result of a request without an image, with the rule that drops each region."""
        verdict = FilteredCanvas(tuple(FilteredRegion(None, rule) for rule in rules), is_kept=False)
        image = np.zeros((*request.layout.canvas_hw, 3), dtype=np.uint8)
        return self._result(request, image, verdict, seconds or {})

    def _result(
        self, request: MosaicRequest, image: np.ndarray, verdict: FilteredCanvas, seconds: dict[str, float]
    ) -> MosaicResult:
        return MosaicResult(
            request=request,
            image=image,
            regions=_describe_regions(request, verdict),
            annotations=_annotate(request, verdict),
            is_kept=verdict.is_kept,
            seconds=seconds,
            provenance=self.describe(request),
        )

    def _to_canvas(self, request: MosaicRequest) -> Canvas:
        return Canvas(
            layout=request.layout,
            prompts=request.prompts,
            negative_prompts=request.negative_prompts or ("",) * len(request.prompts),
            guidance_scales=self._guidance_scales(request),
            noise_seed=request.noise_seed,
        )

    def _guidance_scales(self, request: MosaicRequest) -> tuple[float, ...]:
        return request.guidance_scales or (self.guidance_scale,) * len(request.prompts)

    def _judge(
        self,
        requests: Sequence[MosaicRequest],
        images: Sequence[np.ndarray],
        canvases: Sequence[DenoisedCanvas],
    ) -> list[FilteredCanvas]:
        layouts = [request.layout for request in requests]
        attention_maps = [canvas.attention_maps for canvas in canvases]
        return [
            self.region_filter.apply([region.mask for region in regions], layout, image)
            for regions, layout, image in zip(
                self.labeler.label_batch(images, layouts, attention_maps), layouts, images, strict=True
            )
        ]


class _Stopwatch:
    """Seconds of each stage, times ``share``; waits for the device so that a stage owns what it started."""

    def __init__(self, device: torch.device, share: float):
        self.seconds: dict[str, float] = {}
        self._device = device
        self._share = share

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] = (time.perf_counter() - start_s) * self._share


def _describe_regions(request: MosaicRequest, verdict: FilteredCanvas) -> list[dict[str, Any]]:
    return [
        {"category_id": category_id, "box": list(box), "rejected": region.rejected}
        for category_id, box, region in zip(
            request.category_ids, request.layout.region_boxes, verdict.regions, strict=True
        )
    ]


def _annotate(request: MosaicRequest, verdict: FilteredCanvas) -> list[dict[str, Any]]:
    return [
        {"category_id": category_id, "region": index, **mask_to_annotation(region.mask)}
        for index, (category_id, region) in enumerate(zip(request.category_ids, verdict.regions, strict=True))
        if region.mask is not None
    ]


def _mflight_version() -> str:
    try:
        return metadata.version("mflight")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
