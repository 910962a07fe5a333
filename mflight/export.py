"""From a pool to a dataset: ``python -m mflight.export POOL OUT [--merge lvis_v1_train.json]``."""

import argparse
import logging
from collections.abc import Sequence

from mflight.mistakes import tells_mistakes
from mflight.synthesis.lvis_export import ANNOTATION_FILE, IMAGE_FOLDER, export_pool


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``None`` takes that of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mflight.export",
        description=f"Write OUT/{ANNOTATION_FILE} in LVIS v1 format and OUT/{IMAGE_FOLDER}/ with the images, "
        "or OUT/data.yaml, OUT/images/ and OUT/labels/ for ultralytics.",
    )
    parser.add_argument("pool", metavar="POOL", help="the pool folder")
    parser.add_argument("output", metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--format",
        choices=("lvis", "yolo"),
        default="lvis",
        help="lvis: also read as COCO; yolo: ultralytics' segmentation (default: %(default)s)",
    )
    parser.add_argument(
        "--merge",
        metavar="FILE",
        help="annotation file that the synthetic images are added to; with --format yolo its classes give "
        "the numbers, in the order of their ids, and nothing is added to it",
    )
    parser.add_argument(
        "--segmentation",
        choices=("rle", "polygon"),
        help="rle: exact masks, the default; polygon: read by Detectron2 too, holes are filled",
    )
    parser.add_argument(
        "--update-frequency",
        action="store_true",
        help="let r, c, f of the merged classes follow the new image counts; else rare classes stay rare",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(arguments)
    if args.format == "yolo" and (args.segmentation or args.update_frequency):
        parser.error("--segmentation and --update-frequency are of --format lvis")
    return args


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; ``None`` takes those of the process.
    """
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    counts = export_pool(
        args.pool,
        args.output,
        file_format=args.format,
        merge=args.merge,
        segmentation=args.segmentation or "rle",
        update_frequency=args.update_frequency,
        overwrite=args.overwrite,
    )
    print(f"{counts.images} synthetic images with {counts.instances} instances are in {args.output}")
    if counts.unreadable:
        print(f"{counts.unreadable} samples of the pool could not be read and are left out")
    if args.merge and args.format == "lvis":
        print(
            f"{ANNOTATION_FILE} lists them behind the {counts.merged_images} images of {args.merge}. "
            f"Link {args.output}/{IMAGE_FOLDER} into the folder of those images to train on both"
        )


if __name__ == "__main__":
    main()
