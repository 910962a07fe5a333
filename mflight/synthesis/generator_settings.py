"""What generators draw, how fast and up to what: one value, from the config to each process. No torch."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from mflight.synthesis.pool.throttle import WhenFull, check_marks

if TYPE_CHECKING:
    from mflight.synthesis.service import SynthesisService

PositiveInt = Annotated[int, Field(gt=0)]


def _to_node(config: Any) -> Mapping[str, Any]:
    """Return a config with ``_target_`` as plain data, which travels to another process."""
    if isinstance(config, DictConfig):
        return OmegaConf.to_container(config, resolve=True)
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise ValueError(f"expected a config with '_target_' (set _recursive_: false), got {config!r:.80}")
    return dict(config)


Node = Annotated[Mapping[str, Any], BeforeValidator(_to_node)]
"""Config of what each process builds for itself, with ``_target_``."""


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """The settings of generators: plain data, checked here and nowhere else.

    A ``low_water`` that is not below ``high_water`` is a ValueError, and so are bounds that would evict
    samples before they are used.

    Attributes:
        pool_dir: the pool folder that the generators append to.
        planner: config of the planner, with ``_target_``.
        synthesizer: config of the synthesizer, with ``_target_``; ``device: auto`` in it is the generator's
            own.
        devices: where they draw, a process each, such as ``["cuda:1", "cuda:2"]`` or ``["cpu"]``. The
            process on device d of D answers the blocks d, d + D, ... of ``batch_size`` requests each.
        batch_size: requests drawn at once; halved when the device's memory does not suffice.
        num_threads: CPU threads of each process.
        nice: added to the processes' niceness.
        max_requests: requests of all generators together; None never ends.
        num_samples: samples of all generators together, exactly; None never ends.
        high_water: unused samples in the pool at which drawing pauses; None never pauses.
        low_water: unused samples at which it goes on; None means half of ``high_water``.
        max_samples: bound of the pool in samples.
        max_bytes: bound of the pool in bytes.
        when_full: at its bounds the oldest samples are dropped (``evict``), or drawing pauses (``stop``).
        image_format: of the images in the pool.
        min_free_bytes: room on the pool's disk at which drawing ends, so that training can go on.
        takes_turns: the trainer works on the same device and hands it over from time to time.
        max_restarts: how often each generator is started again.
        backoff_s: wait before the first restart, in seconds; doubled each time, at most a minute.
        stop_timeout_s: wait for a generator to end its batch when it is stopped, in seconds; then it is
            killed.
        capture_output: a process writes to ``worker-<name>.log`` in the pool folder, not to the terminal.
        without_worker: what a message says of the time after a generator that is given up.
    """

    pool_dir: Path
    planner: Node
    synthesizer: Node
    devices: Annotated[tuple[str, ...], Field(min_length=1)] = ("cpu",)
    batch_size: PositiveInt = 1
    num_threads: PositiveInt = 1
    nice: Annotated[int, Field(ge=0, le=19)] = 0
    max_requests: PositiveInt | None = None
    num_samples: PositiveInt | None = None
    high_water: PositiveInt | None = None
    low_water: Annotated[int, Field(ge=0)] | None = None
    max_samples: PositiveInt | None = None
    max_bytes: PositiveInt | None = None
    when_full: WhenFull = "stop"
    image_format: Literal["jpeg", "png"] = "jpeg"
    min_free_bytes: Annotated[int, Field(ge=0)] = 0
    takes_turns: bool = False
    max_restarts: Annotated[int, Field(ge=0)] = 5
    backoff_s: Annotated[float, Field(ge=0.0)] = 1.0
    stop_timeout_s: Annotated[float, Field(ge=0.0)] = 10.0
    capture_output: bool = True
    without_worker: str = "training goes on while the pool has samples to use"

    def __post_init__(self) -> None:
        check_marks(self.low_water, self.high_water, self.max_samples, self.when_full)

    def build_service(self) -> "SynthesisService":
        """Return what keeps such generators alive; nothing is started yet."""
        from mflight.synthesis.service import SynthesisService  # it starts workers, which import this file

        return SynthesisService(self)

    def category_frequencies(self, num_requests: int = 1000) -> dict[int, float]:
        """Return the share of the canvases that will show a class, by category_id, before any filter.

        Args:
            num_requests: canvases planned for the estimate; nothing is drawn.

        Returns:
            The shares, in (0, 1].
        """
        planner = instantiate(dict(self.planner), _convert_="all")
        counts = Counter(c for index in range(num_requests) for c in set(planner.request(index).category_ids))
        return {category_id: count / num_requests for category_id, count in counts.items()}
