"""Images with masks that a diffusion model draws while they are used: a dataset with its generators."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, validate_call
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mflight.data.lvis import read_categories
from mflight.data.target import Target
from mflight.synthesis.generator_settings import GeneratorSettings
from mflight.synthesis.pool.recovery import find_unacknowledged
from mflight.synthesis.pool.signals import is_generating, mark_generating
from mflight.synthesis.service import ServiceReport
from mflight.synthesis.service_keeper import ServiceKeeper
from mflight.synthesis.stream import PoolStream

logger = logging.getLogger(__name__)

_WAIT_S = 0.05
_FILL_NOTE_S = 30.0


class MosaicDataset(IterableDataset):
    """Yields MosaicFusion images and targets, drawn by generators on devices of their own into a pool.

    Iterating starts the generators, waits for their samples, and stops them when it ends: when all that they
    were asked for is used, or never. To keep them over several passes, in a ``DataLoader`` with workers or
    beside a training, start it before: ``with dataset: ...``. Of several training ranks the first one runs
    the generators, the others follow it through the pool. Without generators it yields what the pool holds.

    Args:
        annotation_file: LVIS v1 or COCO JSON that names the classes.
        stream: opens the pool, given ``categories``, ``rank`` and ``world_size``.
        generator: settings of the generators; None draws nothing.
        cache_dir: folder of the annotations' flat arrays.
        poll_s: time between two looks at the generators, in seconds.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
        >>> _ = (folder / "classes.json").write_text(json.dumps(content))
        >>> dataset = MosaicDataset.from_checkpoint(
        ...     "CompVis/stable-diffusion-v1-4",
        ...     annotation_file=folder / "classes.json",
        ...     pool_dir=folder / "pool",
        ...     devices=["cuda:1"],
        ... )
        >>> dataset.generator.devices  # ``for image, target in dataset: ...`` draws
        ('cuda:1',)
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        annotation_file: Path,
        stream: Callable[..., PoolStream],
        generator: GeneratorSettings | None = None,
        cache_dir: Path | None = None,
        poll_s: Annotated[float, Field(gt=0.0)] = 1.0,
    ):
        self._annotation_file, self._cache_dir = annotation_file, cache_dir
        self._build_stream, self.generator, self._poll_s = stream, generator, poll_s
        self.stream: PoolStream | None = None
        self.report: ServiceReport | None = None
        self.messages: list[str] = []
        self.while_waiting: Callable[[], Any] | None = None
        self._rank, self._num_taken = 0, 0
        self._keeper: ServiceKeeper | None = None
        self._is_running, self._is_generating, self._looked_at = False, True, 0.0

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        *,
        annotation_file: str | Path,
        pool_dir: str | Path,
        planner: Mapping[str, Any] | None = None,
        synthesizer: Mapping[str, Any] | None = None,
        max_reuse: int = 1,
        **settings: Any,
    ) -> "MosaicDataset":
        """Draw with a checkpoint and the published settings.

        Args:
            checkpoint: a folder in diffusers' format, or a hub id.
            annotation_file: LVIS v1 or COCO JSON that names the classes.
            pool_dir: the pool folder; samples that it holds are used and not drawn again.
            planner: settings of ``CategoryPlanner`` other than the published ones.
            synthesizer: settings of ``MosaicSynthesizer`` other than the published ones.
            max_reuse: how often one sample is yielded.
            **settings: of ``GeneratorSettings``, such as ``devices`` or ``num_samples``.

        Returns:
            The dataset; nothing is started yet.
        """
        categories = {
            "_target_": "mflight.data.lvis.read_categories",
            "annotation_file": str(annotation_file),
        }
        pipeline = {"checkpoint": str(checkpoint), "dtype": "auto", "device": "auto"}
        generator = GeneratorSettings(
            pool_dir=pool_dir,
            planner={
                "_target_": "mflight.synthesis.planner.CategoryPlanner",
                "categories": categories,
                "prompt_builder": {"_target_": "mflight.synthesis.prompts.PromptBuilder"},
                **(planner or {}),
            },
            synthesizer={
                "_target_": "mflight.synthesis.synthesizer.MosaicSynthesizer",
                "pipeline": {"_target_": "mflight.diffusion.pipeline.load_pipeline", **pipeline},
                "labeler": {"_target_": "mflight.synthesis.labeler.AttentionLabeler"},
                "region_filter": {"_target_": "mflight.synthesis.filters.RegionFilter"},
                **(synthesizer or {}),
            },
            **settings,
        )
        stream = partial(PoolStream, pool_dir=pool_dir, max_reuse=max_reuse, poll_interval_s=_WAIT_S)
        return cls(annotation_file=annotation_file, stream=stream, generator=generator)

    def open(self, *, rank: int = 0, world_size: int = 1) -> PoolStream:
        """Open the pool, and start nothing.

        Args:
            rank: of this training process.
            world_size: number of training processes.

        Returns:
            The view of the pool that this rank uses.
        """
        if self.stream is None:
            categories = read_categories(self._annotation_file, self._cache_dir)
            self._rank = rank
            self.stream = self._build_stream(categories=categories, rank=rank, world_size=world_size)
        return self.stream

    def start(self) -> None:
        """Start the generators, on the first rank only; an error of their settings is raised here."""
        pool_dir = self.open().folder
        if self._is_running:
            return
        self._is_running = True
        if self._rank > 0 or self.generator is None:
            return
        self._keeper = ServiceKeeper(self.generator.build_service(), self._poll_s, self._note)
        for name, left in find_unacknowledged(pool_dir).items():
            message = f"pool: {name} {left}; its writer draws those requests again"
            logger.warning(message)
            self.messages.append(message)
        pool_dir.mkdir(parents=True, exist_ok=True)
        mark_generating(pool_dir, True)
        self._keeper.start()

    def fill(self) -> float:
        """Wait until the generators have drawn all that they are to draw, and stop them.

        Returns:
            Seconds until then.
        """
        self.start()
        started = noted = time.monotonic()
        while self.more_may_come() and not self._is_full():
            time.sleep(min(0.2, self._poll_s))
            if time.monotonic() - noted > _FILL_NOTE_S:
                noted = time.monotonic()
                logger.info("the pool holds %d samples so far", self.report.total("accepted"))
        fill_s = time.monotonic() - started
        self._keeper.stop()  # their device is the trainer's from now on
        drawn = self.report.total("accepted")
        logger.info("the pool was filled to %d samples in %.0f s, now training begins", drawn, fill_s)
        return fill_s

    def stop(self) -> None:
        """Stop the generators; nothing more will come."""
        self._is_running = False
        if self._keeper is not None:
            self._keeper.stop()
            self._mark_over()

    def __enter__(self) -> "MosaicDataset":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        """Yield images ``uint8[3, H, W]`` and their targets as they are drawn.

        Yields:
            One sample after the other, each as often as the pool's cap of uses allows.

        Raises:
            RuntimeError: in a worker of a ``DataLoader``, if nobody has started the generators before; or if
                the last generator is given up, with the reason.
        """
        starts = not self._is_running
        if starts and get_worker_info() is not None:
            raise RuntimeError("start the generators before the workers of a DataLoader: with dataset: ...")
        try:
            self.start()
            while True:
                yield from self.stream
                if not self.wait_for_more() and self.stream.is_used_up():
                    break
                time.sleep(_WAIT_S)
        finally:
            if starts:
                self.stop()
        if self.report is not None and self.report.given_up:
            raise RuntimeError(f"no generator is left: {self.messages[-1]}")

    def __getstate__(self) -> dict[str, Any]:
        """A worker of a ``DataLoader`` gets no generators; it follows them through the pool."""
        return self.__dict__ | {"_keeper": None, "while_waiting": None}

    def more_may_come(self) -> bool:
        """Return whether any generator still works or will be started again."""
        if self.generator is None:
            return False
        if self._keeper is not None and get_worker_info() is None:
            return self._keeper.is_alive and not (self.report and self.report.is_over)
        if time.monotonic() - self._looked_at > self._poll_s:
            self._looked_at = time.monotonic()
            self._is_generating = is_generating(self.open().folder)
        return self._is_generating

    def wait_for_more(self) -> bool:
        """Let the other side of a shared device work, and return whether any more may come."""
        if self.while_waiting is not None:
            self.while_waiting()
        return self.more_may_come()

    def take_messages(self) -> list[str]:
        """Return what has happened to the generators since the last call."""
        messages = self.messages[self._num_taken :]
        self._num_taken = len(self.messages)
        return messages

    def category_frequencies(self) -> dict[int, float]:
        """Return the share of the images that show a class, by category_id: planned, else in the pool."""
        return (self.generator or self.open()).category_frequencies()

    def _is_full(self) -> bool:
        statuses = self.report.statuses if self.report else ()
        return bool(statuses) and all(status.state == "full" for status in statuses)

    def _note(self, report: ServiceReport) -> None:
        self.report = report
        self.messages.extend(report.messages)
        if report.is_over:
            self._mark_over()

    def _mark_over(self) -> None:
        with contextlib.suppress(OSError):
            mark_generating(self.stream.folder, False)
