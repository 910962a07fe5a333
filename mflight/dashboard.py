"""Lay out a W&B workspace for mflight's runs: ``python -m mflight.dashboard [--save --entity NAME]``."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mflight.mistakes import Mistake, tells_mistakes

AP_FIGURES = ("APr", "APc", "APf", "AP")
LOSSES = ("total", "classifier", "box", "mask", "objectness", "proposal_box")
SYNTHESIS_FIGURES = (
    "synthetic_share",
    "fallback_ratio",
    "rejected_ratio",
    "images_per_s",
    "pool_samples",
    "generator_idle_ratio",
)
IMAGE_PANELS = ("panels/predictions", "panels/synthetic")
PER_CLASS_TABLE = "val/per_class"
BEST_FIGURE = "val/best/segm/APr"
X_AXIS = "trainer/global_step"


def build_workspace(*, entity: str = "", project: str = "mflight", name: str = "mflight") -> Any:
    """Build the workspace; nothing is sent.

    Its runs stand in their sweep's group, with the best APr as a column. It shows how AP, APr, APc and APf
    went, then the losses, what synthesis did, the images with masks and the table of all classes.

    Args:
        entity: W&B user or team; empty for the one who is logged in.
        project: W&B project.
        name: of the workspace.

    Returns:
        a ``wandb_workspaces.workspaces.Workspace``.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def lines(prefix: str, names: Sequence[str]) -> list[Any]:
        return [wr.LinePlot(title=figure, x=X_AXIS, y=[f"{prefix}/{figure}"]) for figure in names]

    sections = {
        "Masks by frequency": [wr.ScalarChart(title="best APr", metric=BEST_FIGURE, groupby_aggfunc="mean"),
                               *lines("val/segm", AP_FIGURES)],
        "Boxes by frequency": lines("val/bbox", AP_FIGURES),
        "Losses": lines("train/loss", LOSSES),
        "Synthesis": lines("synthesis", SYNTHESIS_FIGURES),
        "Images with masks": [wr.MediaBrowser(media_keys=[key], num_columns=4) for key in IMAGE_PANELS],
        "Classes": [wr.WeavePanelSummaryTable(table_name=PER_CLASS_TABLE)],
    }  # fmt: skip
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=title, panels=panels, is_open=index != 1)
            for index, (title, panels) in enumerate(sections.items())
        ],
        settings=ws.WorkspaceSettings(x_axis=X_AXIS, max_runs=20),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group")],
            # as W&B stores a config: ".value" below its first key
            pinned_columns=[
                f"summary:{BEST_FIGURE}",
                "config:synthesis.value.synthetic_ratio",
                "config:seed.value",
            ],
        ),
    )


def to_json(workspace: Any) -> str:
    """Return what would be sent as the workspace's layout, as JSON text."""
    view = workspace._to_model().model_dump(by_alias=True, exclude_none=True)
    return json.dumps(view, indent=1, default=str)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``None`` takes that of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mflight.dashboard",
        description="Lay out a W&B workspace: figures by frequency, synthesis, images, classes.",
    )
    parser.add_argument("--entity", default="", help="W&B user or team (default: who is logged in)")
    parser.add_argument("--project", default="mflight", help="W&B project (default: %(default)s)")
    parser.add_argument("--name", default="mflight", help="of the workspace (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the layout there as JSON")
    parser.add_argument("--save", action="store_true", help="send it to W&B; needs a login")
    return parser.parse_args(arguments)


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command: print the layout's sections, write or send it where that is asked for.

    Args:
        arguments: of the command line; ``None`` takes those of the process.

    Raises:
        Mistake: if what lays out workspaces is not installed.
    """
    args = parse_arguments(arguments)
    try:
        workspace = build_workspace(entity=args.entity, project=args.project, name=args.name)
    except ModuleNotFoundError as error:
        raise Mistake(f"{error}: pip install 'mflight[dashboard]'") from None
    for section in workspace.sections:
        print(f"{section.name}: {len(section.panels)} panels")
    if args.output is not None:
        args.output.write_text(to_json(workspace) + "\n")
        print(f"Written to {args.output}")
    if args.save:
        workspace.save()


if __name__ == "__main__":
    main()
