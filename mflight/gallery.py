"""Look at a pool in a browser: ``python -m mflight.gallery POOL [--output gallery.html]``."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mflight.mistakes import tells_mistakes
from mflight.synthesis.gallery_page import pool_to_html


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``None`` takes that of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mflight.gallery",
        description="Write one HTML page with the images of a pool, their masks, prompts and rejections.",
    )
    parser.add_argument("pool", metavar="POOL", help="the pool folder")
    parser.add_argument("--output", type=Path, default=Path("gallery.html"), help="default: %(default)s")
    parser.add_argument("--max-images", type=int, default=500, help="images to show (default: %(default)s)")
    parser.add_argument(
        "--thumbnail-px", type=int, default=448, help="longest side of an image (default: %(default)s)"
    )
    return parser.parse_args(arguments)


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; ``None`` takes those of the process.
    """
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    output: Path = args.output
    _require_place(output)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        page = pool_to_html(args.pool, max_images=args.max_images, thumbnail_px=args.thumbnail_px)
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, output)
    finally:
        draft.unlink(missing_ok=True)
    print(f"Written to {output} ({output.stat().st_size / 2**20:.1f} MB)")


def _require_place(output: Path) -> None:
    if output.is_dir():
        raise IsADirectoryError(f"output must name a file, {output} is a folder")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"output must lie in an existing folder, found none at {output.parent}")


if __name__ == "__main__":
    main()
