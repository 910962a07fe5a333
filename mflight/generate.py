"""Fill a pool without a training run: ``python -m mflight.generate num_samples=100 paths.pool_dir=POOL``."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mflight.data.files import LVIS_DOWNLOADS
from mflight.mistakes import Mistake, tells_mistakes
from mflight.synthesis.generator_settings import GeneratorSettings
from mflight.synthesis.pool.agenda import ids_of_seed
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.settings import describe_settings, keep_settings
from mflight.synthesis.pool.signals import WorkerStatus
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.service import ServiceReport, SynthesisService

_CONFIG_PATH = str(Path(__file__).resolve().parents[1] / "conf")
_POLL_S, _NOTE_S = 0.5, 10.0
_ANSWERS = """
    SELECT request_index, state FROM requests WHERE request_id GLOB ? AND request_index >= ?
    ORDER BY request_index
"""


class GenerationError(Mistake):
    """The generators ended before the pool held what was wanted."""


def generate(cfg: DictConfig, console: Console) -> dict[str, int]:
    """Draw until the pool holds what is wanted; what it holds already is not drawn again.

    Of the requests ``0, 1, 2, ...`` of the seed, the first ones are answered, up to that which gives sample
    ``num_samples`` or to number ``num_requests``. So the pool holds the same samples whatever the batch size,
    the number of devices and the kills in between, up to rounding: a UNet sums in another order in another
    batch. A missing annotation file is a FileNotFoundError.

    Args:
        cfg: as ``conf/generate.yaml`` composes it.
        console: takes the progress bar; plain lines where it is no terminal.

    Returns:
        How many requests of this seed the pool answers: ``kept`` and ``dropped``.

    Raises:
        ValueError: if a setting breaks its rule, if another process writes to the pool, or if the pool was
            drawn with other settings.
        GenerationError: if the generators end before, with the reason of the first that did, or if
            ``max_dropped_in_a_row`` mosaics have been.
    """
    if cfg.num_samples is None and cfg.num_requests is None:
        raise ValueError("num_samples or num_requests must be set, both are null")
    folder = Path(cfg.paths.pool_dir)
    _prepare_dataset(cfg.data)
    _resolve_devices(cfg.synthesis)
    planner = _check_generator(cfg)
    settings: GeneratorSettings = instantiate(cfg.synthesis.service)
    service = settings.build_service()
    for index in range(len(cfg.synthesis.devices)):  # refuses a pool that is written to, or is none
        PoolWriter(folder, f"w{index}").close()
    tally = _Tally(folder, planner, cfg)
    keep_settings(folder, cfg.seed, _describe_settings(cfg, planner), is_new=not tally.has_answers)
    if tally.left:
        earlier_pids = {status.pid for status in _statuses(folder, cfg)}
        with service:
            for report in _watch(service, tally, console):
                _raise_on_error(report, earlier_pids)
                _raise_on_drops(report, tally, cfg.max_dropped_in_a_row)
        tally.update()
    if tally.left:
        raise GenerationError(f"{tally.left} more are wanted, but {_reason(report)}; {_go_on(folder)}")
    return {"kept": tally.kept, "dropped": tally.dropped}


def rejections_table(folder: Path, figures: Mapping[str, int], statuses: list[WorkerStatus]) -> Table:
    """Lay out what a pool holds and why regions were rejected, of all requests of its writers."""
    table = Table(title=f"pool {folder}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in figures.items():
        table.add_row(f"mosaics {name}", str(count))
    table.add_row("regions drawn, of all seeds", str(sum(status.regions for status in statuses)))
    for rule in sorted({rule for status in statuses for rule in status.rejected}):
        table.add_row(f"  rejected: {rule}", str(sum(status.rejected.get(rule, 0) for status in statuses)))
    busy_s = sum(status.busy_s for status in statuses)
    if busy_s:
        rate = sum(status.requests for status in statuses) / busy_s
        table.add_row("mosaics a second and device", f"{rate:.2f}")
    return table


class _Tally:
    """Counts the answered requests of one seed in a pool up to the first open one, and those still wanted."""

    def __init__(self, folder: Path, planner: Any, cfg: DictConfig):
        self._reader, self._planner = PoolReader(folder), planner
        self._num_samples, self._num_requests = cfg.num_samples, cfg.num_requests
        self.kept = self.dropped = self.dropped_in_a_row = 0
        self.update()

    def update(self) -> None:
        """Look into the pool."""
        for index, state in self._answers(self.kept + self.dropped):
            if index > self.kept + self.dropped:  # one before it is open
                break
            self.kept, self.dropped = self.kept + (state != "dropped"), self.dropped + (state == "dropped")
            self.dropped_in_a_row = self.dropped_in_a_row + 1 if state == "dropped" else 0

    @property
    def has_answers(self) -> bool:
        """Whether any request of the seed is answered, also behind one that is open."""
        return bool(self._answers(0))

    def _answers(self, start: int) -> list[tuple[int, str]]:
        """Return number and state of the seed's answered requests, rising from a number on."""
        return self._reader.rows(_ANSWERS, ids_of_seed(self._planner.request_id(0)), start)

    @property
    def goal(self) -> int:
        """What the bar ends at: samples, or requests where only these are bound."""
        return self._num_samples if self._num_samples is not None else self._num_requests

    @property
    def done(self) -> int:
        """How much of the goal the pool holds."""
        return self.kept if self._num_samples is not None else self.kept + self.dropped

    @property
    def left(self) -> int:
        """How many are still to be drawn; 0 also when the requests are used up."""
        if self._num_requests is not None and self.kept + self.dropped >= self._num_requests:
            return 0
        return max(0, self.goal - self.done)


def _prepare_dataset(data: DictConfig) -> None:
    """Only the classes are read: the images of a dataset need not be there."""
    if data.prepare is not None:
        instantiate(data.prepare)()
    if not Path(data.train_annotations).is_file():
        raise FileNotFoundError(
            f"data.train_annotations={data.train_annotations} does not exist; it names the classes to draw. "
            f"LVIS v1 annotations are published at {LVIS_DOWNLOADS}"
        )


def _resolve_devices(synthesis: DictConfig) -> None:
    """Fill in the devices and threads that are left to the program."""
    if synthesis.devices == "auto":
        import torch  # not above: each generator process imports this file before its threads are set

        synthesis.devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    if synthesis.num_threads == "auto":
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        synthesis.num_threads = max(1, num_cores // len(synthesis.devices))


def _check_generator(cfg: DictConfig) -> Any:
    """Build the planner, and look at the checkpoint before a generator loads it."""
    from mflight.synthesis.generator_check import check_generator  # not above: it imports torch

    nodes = (cfg.synthesis.planner, cfg.diffusion.synthesizer)
    return check_generator(
        *(OmegaConf.to_container(node, resolve=True) for node in nodes), cfg.diffusion.unknown_classes
    )


def _describe_settings(cfg: DictConfig, planner: Any) -> dict[str, Any]:
    nodes = OmegaConf.create({"planner": cfg.synthesis.planner, "synthesizer": cfg.diffusion.synthesizer})
    return describe_settings(**OmegaConf.to_container(nodes, resolve=True), categories=planner.categories)


def _watch(service: SynthesisService, tally: _Tally, console: Console) -> Iterator[ServiceReport]:
    """Yield what the service reports, and show it, until nothing more is drawn."""
    columns = (TextColumn("mosaics"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=tally.goal, completed=tally.done)
        told, tenth, told_at = "", -1, time.monotonic()
        while True:
            report = service.poll()
            tally.update()
            words = f"{tally.dropped} dropped" + (
                _rejections(report) if report.total("regions") else ", loading"
            )
            bar.update(task, completed=tally.done, description=words)
            is_due = time.monotonic() - told_at > _NOTE_S and words != told
            if bar.disable and (is_due or 10 * tally.done // tally.goal != tenth):
                console.print(f"{tally.done} of {tally.goal}, {words}", highlight=False)
                told, tenth, told_at = words, 10 * tally.done // tally.goal, time.monotonic()
            yield report
            if report.is_over:
                return
            time.sleep(_POLL_S)


def _raise_on_error(report: ServiceReport, earlier_pids: set[int]) -> None:
    """End when a generator has met an error, which would come again, or is given up."""
    has_failed = any(s.state == "failed" and s.pid not in earlier_pids for s in report.statuses)
    if report.given_up or (report.num_deaths and has_failed):
        raise GenerationError(_reason(report))


def _raise_on_drops(report: ServiceReport, tally: _Tally, max_in_a_row: int | None) -> None:
    """End where nothing is accepted: it would go on for ever."""
    if max_in_a_row is not None and tally.left and tally.dropped_in_a_row >= max_in_a_row:
        raise GenerationError(
            f"the last {tally.dropped_in_a_row} mosaics were all dropped, max_dropped_in_a_row is "
            f"{max_in_a_row}, {tally.kept} were kept before{_rejections(report)}: loosen "
            "diffusion.synthesizer.region_filter (rescue=true keeps the good regions of a mosaic), or name "
            "another checkpoint or seed"
        )


def _rejections(report: ServiceReport) -> str:
    """Regions rejected by rule, the most frequent rule first."""
    by_rule = sorted(report.total_by_name("rejected").items(), key=lambda item: -item[1])
    told = ", ".join(f"{rule} {count:.0f}" for rule, count in by_rule)
    return f", of {report.total('regions'):.0f} regions rejected: {told}" if told else ""


def _reason(report: ServiceReport) -> str:
    said = [f"generator {s.writer} {s.state}: {s.message}" for s in report.statuses if s.message]
    return "; ".join([*said, *report.messages][:1]) or "the generators were told to stop by somebody else"


def _statuses(folder: Path, cfg: DictConfig) -> list[WorkerStatus]:
    return [WorkerStatus.read(folder, f"w{index}") for index in range(len(cfg.synthesis.devices))]


def _go_on(folder: Path) -> str:
    return f"the same command goes on with {folder}"


@tells_mistakes
@hydra.main(version_base="1.3", config_path=_CONFIG_PATH, config_name="generate")
@tells_mistakes
def main(cfg: DictConfig) -> None:
    """Run the command.

    Args:
        cfg: ``conf/generate.yaml`` with its overrides.

    Raises:
        SystemExit: with the way to go on, if it is stopped from the keyboard.
    """
    console = Console()
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    folder = Path(cfg.paths.pool_dir)
    try:
        figures = generate(cfg, console)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; {_go_on(folder)}") from None
    console.print(rejections_table(folder, figures, _statuses(folder, cfg)))
    print(f"To look at it: python -m mflight.gallery {folder}")


if __name__ == "__main__":
    main()
