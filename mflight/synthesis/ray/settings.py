"""What Ray generators need beside the settings of all generators. No torch, no Ray."""

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from mflight.synthesis.generator_settings import GeneratorSettings, PositiveInt
from mflight.synthesis.ray.cluster import require_ray

if TYPE_CHECKING:
    from mflight.synthesis.ray.service import RaySynthesisService


def _to_plain(config: Any) -> Any:
    if isinstance(config, DictConfig):
        return OmegaConf.to_container(config, resolve=True)
    return config or {}


@dataclass(frozen=True, kw_only=True)
class RayGeneratorSettings(GeneratorSettings):
    """The settings of generators that are Ray actors anywhere in a cluster, one GPU each.

    Ray that is not installed is a ModuleNotFoundError. Ray places the actors, so there are no ``devices`` to
    name; ``num_threads`` are the CPU cores that an actor holds, and restarts count for each actor and for the
    driver. The planner is built on the trainer's host, the synthesizer by each actor: the checkpoint must be
    on each machine, and its ``device: auto`` is the actor's GPU, else its CPU.

    Attributes:
        devices: no choice; the process on this host that drives the actors needs none.
        address: ``host:port`` of the cluster's head, or ``"auto"`` for the cluster that this host belongs to.
        num_generators: actors; ``"auto"``: one for each GPU of the cluster, or for each node without any.
        use_home_gpus: Ray may place actors on the GPUs that this host offers it: those do not train.
        runtime_env: of the actors, as ``ray.init`` takes it, such as ``{"env_vars": {...}}``.
        place_timeout_s: an actor that is not ready so long after its start counts as dead, in seconds.
        connect_timeout_s: wait for the driver at the start, in seconds.

    Raises:
        ValueError: if ``address`` is one of Ray Client, ``ray://``.
    """

    devices: tuple[str, ...] = field(default=("cpu",), init=False)
    address: str = "auto"
    num_generators: PositiveInt | Literal["auto"] = "auto"
    use_home_gpus: bool = False
    runtime_env: Annotated[Mapping[str, Any] | None, BeforeValidator(_to_plain)] = None
    place_timeout_s: Annotated[float, Field(gt=0.0)] = 600.0
    connect_timeout_s: Annotated[float, Field(gt=0.0)] = 60.0

    def __post_init__(self) -> None:
        require_ray()
        if self.address.startswith("ray://"):  # its client has no streaming generators
            raise ValueError(f"synthesis.service.address must be host:port or auto, got {self.address}")
        super().__post_init__()

    def build_service(self) -> "RaySynthesisService":
        """Return what keeps such generators alive; nothing is started yet."""
        from mflight.synthesis.ray.service import RaySynthesisService

        return RaySynthesisService(self)
