"""A sample as a generator stores it: a picture of about 120 kB and four instances."""

import io

import numpy as np
from PIL import Image

from mflight.functional.masks import mask_to_annotation
from mflight.synthesis.pool.packing import EncodedSample

SIDE_PX, PICTURE_BYTES = 512, 118_000
CATEGORIES = [
    {"id": number, "name": f"class_{number}", "def": "", "image_count": 5} for number in range(1, 9)
]


def stored_picture():
    """Return a JPEG of SIDE_PX squared of about PICTURE_BYTES: noise on blurred colours."""
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 255, (32, 32, 3), dtype=np.uint8)).resize((SIDE_PX, SIDE_PX))
    noise = draws.normal(0.0, 1.0, (SIDE_PX, SIDE_PX, 3))
    for strength in np.arange(0.0, 40.0, 0.5):
        file = io.BytesIO()
        image = np.clip(np.asarray(coarse) + strength * noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
        if file.tell() >= PICTURE_BYTES:
            break
    return file.getvalue()


def stored_sample():
    """Return a picture with four instances, as a generator would store it."""
    annotations, regions, rows = [], [], np.arange(SIDE_PX)
    for slot in range(4):
        x, y = SIDE_PX // 2 * (slot % 2), SIDE_PX // 2 * (slot // 2)
        radius = (rows[:, None] - y - 128) ** 2 + (rows[None] - x - 128) ** 2
        mask = radius < (90 + 10 * np.sin(rows / 5)[:, None]) ** 2
        annotations.append({"category_id": slot + 1, "region": slot, **mask_to_annotation(mask)})
        box = [x, y, x + SIDE_PX // 2, y + SIDE_PX // 2]
        regions.append({"category_id": slot + 1, "box": box, "rejected": None})
    return EncodedSample("none", stored_picture(), annotations, regions, {"request": {"noise_seed": 1}})
