"""The generator that Ray runs as an actor on any machine of a cluster: draws, labels, packs, and no more.

It knows neither pool nor dataset: requests come to it complete and leave it as the bytes that a pool holds.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mflight.synthesis.pool.index import RequestAnswer
from mflight.synthesis.pool.packing import answer_of, encode_sample, verdicts
from mflight.synthesis.request import MosaicRequest
from mflight.synthesis.shrinking_batches import ShrinkingBatches
from mflight.synthesis.worker import build_part, fill_device

Answer = dict[str, Any]


class RayGenerator:
    """Draws requests on the GPU that Ray has given it, or on the CPU where it has given none.

    Args:
        synthesizer: config of the synthesizer, with ``_target_``; ``device: auto`` in it is this actor's own.
        batch_size: requests drawn at once; halved when the device's memory does not suffice.
        num_threads: CPU threads.
        has_gpu: whether Ray has given it a GPU.
        image_format: of the images sent home.
        jpeg_quality: 1 to 100.
    """

    def __init__(
        self,
        *,
        synthesizer: Mapping[str, Any],
        batch_size: int,
        num_threads: int,
        has_gpu: bool,
        image_format: Literal["jpeg", "png"],
        jpeg_quality: int = 95,
    ):
        os.environ |= {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}  # before torch
        self._image_format, self._jpeg_quality = image_format, jpeg_quality
        config = fill_device(synthesizer, "cuda:0" if has_gpu else "cpu")
        self._batches = ShrinkingBatches(build_part(config), batch_size)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(num_threads)

    def describe(self) -> dict[str, Any]:
        """Say where it runs: ``node_id`` in Ray's words, ``host``, ``pid``, ``gpus`` as Ray numbers them."""
        import ray

        node_id = ray.get_runtime_context().get_node_id()
        return {
            "node_id": node_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "gpus": ray.get_gpu_ids(),
        }

    def draw(self, requests: Sequence[Mapping[str, Any]]) -> Iterator[Answer]:
        """Yield an answer to each request as soon as its batch is drawn.

        Args:
            requests: written by ``MosaicRequest.to_dict``.

        Yields:
            ``{"index", "answer": ``RequestAnswer``, "span": tar members or b"", "stage_s": seconds by
            stage, "busy_s": seconds of its drawing and packing, "batch_size"}``.
        """
        started = time.monotonic()
        for result in self._batches.draw([MosaicRequest.from_dict(request) for request in requests]):
            answer = self._pack(result)
            answer["busy_s"] = time.monotonic() - started
            yield answer
            started = time.monotonic()  # not before: the yield waits while home has enough

    def _pack(self, result: Any) -> Answer:
        request, sample = result.request, result.sample()
        if sample is None:
            answer = RequestAnswer(request.request_id, request.index, verdicts(result.regions))
            span = b""
        else:
            answer = answer_of(sample, request.index)
            span = encode_sample(sample, self._image_format, self._jpeg_quality)
        return {
            "index": request.index,
            "answer": answer,
            "span": span,
            "stage_s": dict(result.seconds),
            "batch_size": self._batches.batch_size,
        }
