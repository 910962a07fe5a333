"""A pool as one HTML page: images with their masks, prompts, and why regions were rejected. No torch."""

import base64
import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mflight.functional.masks import resize_mask, rle_decode
from mflight.functional.polygons import mask_to_polygons
from mflight.synthesis.lvis_export import categories_of
from mflight.synthesis.pool.index import INDEX_NAME, PoolError, holds_pool
from mflight.synthesis.pool.packing import PoolSample
from mflight.synthesis.pool.reader import PoolReader, SampleRef

logger = logging.getLogger(__name__)

_TEMPLATE = Path(__file__).with_suffix(".html")
_PLACE_OF_DATA = "__POOL__"
_PLACE_OF_TITLE = "__TITLE__"
_KEPT, _LOST = "kept", "lost"


@dataclass
class RegionCounts:
    """How many regions were kept and how many each rule rejected.

    Attributes:
        names: of the classes, by ``category_id``.
        by_class: counts of verdicts by ``category_id``; a verdict is ``"kept"``, the name of the rule that
            rejected a region, or ``"lost"`` for a good region of a dropped canvas.
    """

    names: dict[int, str] = field(default_factory=dict)
    by_class: dict[int, Counter] = field(default_factory=lambda: defaultdict(Counter))

    def add_sample(self, sample: PoolSample) -> None:
        """Count the regions of a kept canvas."""
        self.names.update({entry["id"]: entry["name"] for entry in categories_of(sample)})
        for region in sample.regions:
            self.by_class[region["category_id"]][region["rejected"] or _KEPT] += 1

    def add_dropped(self, regions: Iterable[tuple[int, str | None]]) -> None:
        """Count the regions of a dropped canvas, of which the pool keeps no image."""
        for category_id, rule in regions:
            self.by_class[category_id][rule or _LOST] += 1

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON types, classes with most regions first."""
        total = sum(self.by_class.values(), Counter())
        rules = [rule for rule, _ in total.most_common() if rule not in (_KEPT, _LOST)]
        classes = [
            {
                "id": category_id,
                "name": self.names.get(category_id, f"category_{category_id}"),
                **_split(counts),
            }
            for category_id, counts in self.by_class.items()
        ]
        classes.sort(key=lambda one: (-self.by_class[one["id"]].total(), one["name"]))
        return {"rules": rules, "total": _split(total), "classes": classes}


def pool_to_html(
    pool_dir: str | Path, *, max_images: int = 500, thumbnail_px: int = 448, quality: int = 82
) -> str:
    """Make the page; it holds all that it shows and asks nothing of the network.

    Args:
        pool_dir: the pool folder.
        max_images: how many images are shown, evenly spaced over the pool; the counts are of all.
        thumbnail_px: longest side of a shown image, in px.
        quality: of the shown images' WebP, 1 to 100.

    Returns:
        The HTML text.

    Raises:
        FileNotFoundError: if there is no pool.
        ValueError: if ``max_images`` or ``thumbnail_px`` is below 1.
    """
    folder = Path(pool_dir)
    for name, value in (("max_images", max_images), ("thumbnail_px", thumbnail_px)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not holds_pool(folder):
        raise FileNotFoundError(f"{folder} is no pool: it has no {INDEX_NAME}")
    reader, counts = PoolReader(folder), RegionCounts()
    refs = reader.poll()
    shown = {refs[index].sample_id for index in _spread(len(refs), max_images)}
    samples = []
    for sample in _read_all(reader, refs):
        counts.add_sample(sample)
        if sample.sample_id in shown:
            samples.append(describe_sample(sample, thumbnail_px, quality))
    dropped = reader.rows("SELECT regions FROM requests WHERE state = 'dropped' ORDER BY number")
    for (regions,) in dropped:
        counts.add_dropped(json.loads(regions))
    data = {
        "name": folder.resolve().name,
        "num_samples": len(refs),
        "num_dropped": len(dropped),
        "set_aside": list(reader.set_aside.values()),
        "counts": counts.to_dict(),
        "samples": samples,
    }
    return _fill(_TEMPLATE.read_text(encoding="utf-8"), data)


def _fill(template: str, data: dict[str, Any]) -> str:
    """Put the data into the page; no text of it can end the script element or begin a tag."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    title = "".join(f"&#{ord(sign)};" for sign in data["name"])
    return template.replace(_PLACE_OF_TITLE, title).replace(_PLACE_OF_DATA, text)


def _spread(count: int, wanted: int) -> list[int]:
    if count <= wanted:
        return list(range(count))
    return [index * count // wanted for index in range(wanted)]


def _read_all(reader: PoolReader, refs: Iterable[SampleRef]) -> Iterable[PoolSample]:
    for ref in refs:
        try:
            yield reader.read(ref)
        except PoolError as error:
            logger.warning("left out: %s", error)
            reader.set_aside[ref.sample_id] = str(error)


def describe_sample(sample: PoolSample, thumbnail_px: int, quality: int) -> dict[str, Any]:
    """Return what a page shows of a sample: its image as a data URI, its regions with outlines as SVG paths.

    Args:
        sample: of a pool.
        thumbnail_px: longest side of the shown image, in px.
        quality: of its WebP, 1 to 100.

    Returns:
        JSON types; ``scale`` takes the paths, which are in shown pixels, to those of the sample.
    """
    height, width = sample.image.shape[:2]
    scale = min(1.0, thumbnail_px / max(height, width))
    shown_hw = max(1, round(height * scale)), max(1, round(width * scale))
    masks = {
        one["region"]: resize_mask(rle_decode(one["segmentation"]), shown_hw) for one in sample.annotations
    }
    request = sample.provenance.get("request", {})
    prompts = [prompt["text"] for prompt in request.get("prompts", [])] or [""] * len(sample.regions)
    facts = {
        "checkpoint": "/".join(Path(sample.provenance.get("checkpoint", "")).parts[-2:]) or None,
        "scheduler": sample.provenance.get("scheduler"),
        "steps": sample.provenance.get("num_inference_steps"),
        "noise seed": request.get("noise_seed"),
    }
    return {
        "id": sample.sample_id,
        "width": width,
        "height": height,
        "scale": [width / shown_hw[1], height / shown_hw[0]],
        "image": _to_data_uri(sample.image, shown_hw, quality),
        "facts": {key: str(value) for key, value in facts.items() if value is not None},
        "regions": [
            {
                "category": region["category_id"],
                "name": entry["name"],
                "prompt": prompt,
                "box": region["box"],
                "rejected": region["rejected"],
                "path": _to_svg_path(masks[index]) if index in masks else None,
            }
            for index, (region, entry, prompt) in enumerate(
                zip(sample.regions, categories_of(sample), prompts, strict=True)
            )
        ],
    }


def _to_data_uri(image: np.ndarray, size_hw: tuple[int, int], quality: int) -> str:
    picture = Image.fromarray(image)
    if image.shape[:2] != size_hw:
        picture = picture.resize(size_hw[::-1], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _to_svg_path(mask: np.ndarray) -> str:
    """Return an SVG path of a mask, holes by the even-odd rule; its lines are horizontal and vertical."""
    parts = []
    for polygon in mask_to_polygons(mask, with_holes=True):
        points = np.array(polygon).reshape(-1, 2)
        moves = np.diff(points, axis=0).tolist()
        lines = "".join(f"h{dx}" if dx else f"v{dy}" for dx, dy in moves)
        parts.append(f"M{points[0][0]} {points[0][1]}{lines}z")
    return "".join(parts)


def _split(counts: Counter) -> dict[str, Any]:
    rejected = {rule: count for rule, count in counts.items() if rule not in (_KEPT, _LOST) and count}
    return {"kept": counts[_KEPT], "lost": counts[_LOST], "rejected": rejected}
