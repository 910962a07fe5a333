"""Draw samples of a pool with their masks and names into one picture, as in the README.

python benchmarks/mosaic_picture.py POOL_DIR ANNOTATIONS.json OUT.png [--count 12]
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mflight.data.lvis import read_categories
from mflight.functional.masks import rle_decode
from mflight.synthesis.pool.packing import PoolSample
from mflight.synthesis.pool.reader import PoolReader

COLOURS = ((255, 64, 64), (64, 224, 64), (255, 224, 32), (255, 64, 255))
SCALE, COLUMNS = 2, 6


def outlined(sample: PoolSample, names: dict[int, str]) -> Image.Image:
    """Return the image, enlarged, with the border of each mask and the name of its class."""
    pixels = sample.image.repeat(SCALE, axis=0).repeat(SCALE, axis=1).copy()
    captions = []
    for number, annotation in enumerate(sample.annotations):
        colour = COLOURS[number % len(COLOURS)]
        mask = rle_decode(annotation["segmentation"]).astype(bool)
        mask = np.pad(mask.repeat(SCALE, axis=0).repeat(SCALE, axis=1), 1)
        inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        pixels[mask[1:-1, 1:-1] & ~inner] = colour
        x, y, _, height = annotation["bbox"]
        place = (SCALE * x, min(SCALE * (y + height), pixels.shape[0] - 11))
        captions.append((place, names[annotation["category_id"]], colour))
    image = Image.fromarray(pixels)
    for place, name, colour in captions:
        ImageDraw.Draw(image).text(place, name, fill=colour, stroke_width=1, stroke_fill=(0, 0, 0))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool_dir", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=12)
    args = parser.parse_args()
    names = {category.category_id: category.name for category in read_categories(args.annotations)}
    reader = PoolReader(args.pool_dir)
    tiles = [np.asarray(outlined(reader.read(ref), names)) for ref in reader.poll()[: args.count]]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[i : i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows, axis=0)).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
