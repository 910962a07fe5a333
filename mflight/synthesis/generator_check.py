"""Settings, checkpoint and classes of the generators, looked at before any of them is started."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from hydra.utils import instantiate

from mflight.data.categories import Category
from mflight.diffusion.attention import AttentionRecorder
from mflight.synthesis.planner import CategoryPlanner
from mflight.synthesis.worker import fill_device

UnknownClasses = Literal["refuse", "draw"]
_NUM_NAMED = 5


def check_generator(
    planner: Mapping[str, Any], synthesizer: Mapping[str, Any], unknown_classes: UnknownClasses = "refuse"
) -> CategoryPlanner:
    """Build the planner, and the synthesizer without the weights of its models.

    What a constructor refuses is raised as Hydra wraps it. A synthesizer without a ``pipeline`` node is
    somebody's own: only its planner is looked at.

    Args:
        planner: config of the planner, resolved.
        synthesizer: config of the synthesizer, resolved; a ``device: auto`` in it becomes ``meta``.
        unknown_classes: what becomes of classes that the checkpoint says it does not know: they are refused,
            or drawn from their names all the same.

    Returns:
        The planner.

    Raises:
        ValueError: if ``unknown_classes`` is none of its values, if a class is unknown, if the UNet has no
            attention to record, or if a region's edges lie off the latent grid.
    """
    if unknown_classes not in get_args(UnknownClasses):
        raise ValueError(
            f"diffusion.unknown_classes must be one of {get_args(UnknownClasses)}, got {unknown_classes!r}"
        )
    built = _build("synthesis.planner", planner)
    if "pipeline" not in synthesizer:
        return built
    looked = _build("diffusion.synthesizer", fill_device(synthesizer, "meta"))
    AttentionRecorder(looked.pipeline.unet, looked.attention.blocks, looked.attention.levels)
    built.request(0).layout.latent_boxes(looked.pipeline.latent_stride_px)
    known = looked.pipeline.files.known_classes
    if known is not None and unknown_classes == "refuse":
        _check_classes(built.wanted_categories, known, looked.pipeline.checkpoint)
    return built


def _build(place: str, node: Mapping[str, Any]) -> Any:
    """Instantiate a node at its place in the config, which Hydra names where a value is refused."""
    group, name = place.split(".")
    return instantiate({group: {name: dict(node)}}, _convert_="all")[group][name]


def _check_classes(wanted: Sequence[Category], known: Sequence[str], checkpoint: str) -> None:
    """Compare names, as they are spoken: ids mean something in their own dataset only."""
    spoken = {name.replace("_", " ").casefold() for name in known}
    unknown = [one.name for one in wanted if one.spoken_name.casefold() not in spoken]
    if unknown:
        more = f" and {len(unknown) - _NUM_NAMED} more" if len(unknown) > _NUM_NAMED else ""
        raise ValueError(
            f"the checkpoint {checkpoint} can draw {len(known)} classes only, and {len(unknown)} of the "
            f"{len(wanted)} wanted are none of them: {', '.join(unknown[:_NUM_NAMED])}{more}. Name a "
            "checkpoint that can (diffusion=sd15, or diffusion.checkpoint=FOLDER), let it try with "
            "diffusion.unknown_classes=draw, or train without (synthesis=none)"
        )
