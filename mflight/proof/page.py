"""A proof as one HTML page that holds all it shows: the answer, its accounts, classes, cost, pictures."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mflight.compare import mean_and_spread
from mflight.proof.arms import SYNTHESIS
from mflight.proof.difference import AGAINST, IOU_WORDS, account_answer, change
from mflight.proof.plots import (
    bar_track,
    curve_plot,
    interval_track,
    legend_line,
    minus,
    scale_of,
    signed,
    tone,
)
from mflight.synthesis.gallery_page import describe_sample
from mflight.synthesis.pool.index import PoolError, holds_pool
from mflight.synthesis.pool.packing import PoolSample
from mflight.synthesis.pool.reader import PoolReader

_NUM_ENDS = 20  # classes shown at each end where there are more than twice as many
_NUM_PICTURES, _THUMBNAIL_PX, _QUALITY = 4, 320, 82
_ACCOUNTS = {
    "equal_real": ("As many real images", "Real images alone, as many as the run with synthesis sees."),
    "equal_images": (
        "As many images",
        "At each step as many images, all of them real: more images help as well.",
    ),
    "equal_time": (
        "As much machine time",
        "Real images alone, for as long as drawing and training took together.",
    ),
}
_ARM_WORDS = {
    "synthesis": "with synthesis",
    "real_only": "real images only",
    "control": "as many images, all real",
    "equal_time": "real images for the same machine time",
}
_FIGURE_WORDS = {"AP": "all", "AP50": "all, IoU 0.5", "APr": "rare", "APc": "common", "APf": "frequent"}

Record = Mapping[str, Any]


def proof_to_html(record: Record, pools: Sequence[Path]) -> str:
    """Make the page; it asks nothing of the network, and shows without scripts.

    Args:
        record: as ``proof.json`` holds it.
        pools: the pool folders that synthesis has trained from, for pictures.

    Returns:
        The HTML text.
    """
    place = Path(__file__).parent
    templates = Environment(
        loader=FileSystemLoader(place),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"minus": minus, "signed": signed, "change": change, "tone": tone}
    templates.filters["spoken"] = lambda name: name.replace("_", " ")
    first = next(iter(record["accounts"].values()))["difference"]
    iou_type = next((kind for kind in IOU_WORDS if f"{kind}/AP" in first), "segm")
    return templates.get_template(f"{Path(__file__).stem}.html").render(
        record=record,
        iou_word=IOU_WORDS[iou_type],
        accounts=_accounts(record, iou_type),
        arms=[
            {
                "words": _ARM_WORDS[arm],
                "legend": legend_line(arm),
                "steps": list(dict.fromkeys(record["steps"][arm])),
            }
            for arm in record["curves"]
        ],
        plots=_plots(record, iou_type),
        classes=_classes(record),
        num_ends=_NUM_ENDS,
        cost=_cost(record),
        pictured=_pictures(record, pools),
        pool=pools[0] if pools else "POOL",
    )


def _accounts(record: Record, iou_type: str) -> list[dict[str, Any]]:
    """Describe each account, its tables of masks and boxes drawn to one scale."""
    scaled = [
        difference
        for account in record["accounts"].values()
        for name, difference in account["difference"].items()
        if name.startswith(iou_type)
    ]
    low, high = scale_of(scaled)
    lead = "APr" if f"{iou_type}/APr" in next(iter(record["accounts"].values()))["difference"] else "AP"
    told = []
    for name, account in record["accounts"].items():
        title, words = _ACCOUNTS[name]
        tables = [
            {"caption": f"{word} AP", "rows": _figure_rows(account, kind, low, high)}
            for kind, word in IOU_WORDS.items()
            if f"{kind}/AP" in account["difference"]
        ]
        told.append(
            {
                "name": name,
                "title": title,
                "words": words,
                "against": AGAINST[name],
                "ratio": record["machine_time"][name],
                "sentence": account_answer(account["difference"]),
                "lead": {
                    "group": f"{_FIGURE_WORDS[lead]} classes",
                    "difference": account["difference"][f"{iou_type}/{lead}"],
                },
                "tables": tables,
            }
        )
    return told


def _figure_rows(account: Record, iou_type: str, low: float, high: float) -> list[dict[str, Any]]:
    names = {figure: f"{iou_type}/{figure}" for figure in _FIGURE_WORDS}
    return [
        {
            "name": name,
            "figure": figure,
            "group": _FIGURE_WORDS[figure],
            "cells": [
                mean_and_spread([value for value in account[arm][name] if value is not None])
                for arm in ("real_only", "synthesis")
            ],
            "difference": account["difference"][name],
            "track": interval_track(account["difference"][name], low, high),
        }
        for figure, name in names.items()
        if name in account["difference"]
    ]


def _plots(record: Record, iou_type: str) -> list[dict[str, str]]:
    plots = []
    for figure, words in _FIGURE_WORDS.items():
        title = f"{figure}, {words} classes"
        curves = {
            arm: [each.get(f"{iou_type}/{figure}", []) for each in own]
            for arm, own in record["curves"].items()
        }
        if figure != "AP50" and (svg := curve_plot(title, curves)):
            plots.append({"title": title, "svg": svg})
    return plots


def _classes(record: Record) -> list[dict[str, Any]]:
    low, high = scale_of([{**row["difference"], "low": None, "high": None} for row in record["classes"]])
    rows = []
    for row in record["classes"]:
        mean, sd = row["difference"]["mean"], row["difference"]["sd"]
        is_within_spread = sd is not None and abs(mean) < sd
        css_class = "even" if is_within_spread else "good" if mean > 0 else "bad"
        before = statistics.mean(value for value in row["real_only"] if value is not None)
        rows.append({**row, "before": before, "track": bar_track(mean, low, high, css_class)})
    return rows


def _cost(record: Record) -> dict[str, Any]:
    """Describe machine time, images and rejections; means are over the seeds."""
    drawing = [each for each in record["drawing"] if each.get("busy_s")]
    figures = [
        (f"{statistics.mean(record['machine_s'][SYNTHESIS]):,.0f} s", "device-seconds a run with synthesis")
    ]
    if "equal_real" in record["machine_time"]:
        figures.insert(
            0, (f"{record['machine_time']['equal_real']:.2f} x", "the machine time of real images only")
        )
    shares: dict[str, float] = {}
    if drawing:
        regions = sum(each["regions"] for each in drawing) or 1
        busy_s, images, dropped = (
            statistics.mean(each[key] for each in drawing) for key in ("busy_s", "images", "dropped")
        )
        rejected = sum(each["rejected_ratio"] * each["regions"] for each in drawing) / regions
        figures += [
            (f"{busy_s:,.0f} s", f"of them drawing, {busy_s / max(1, images):.1f} s an accepted image"),
            (f"{images:,.0f}", f"images accepted a run, {dropped:,.0f} dropped"),
            (f"{100 * rejected:.1f} %", f"of {regions:,.0f} regions rejected"),
        ]
        rules = {key for each in drawing for key in each if key.startswith("rejected/")}
        shares = {rule: sum(each.get(rule, 0) for each in drawing) / regions for rule in rules}
    for key, words in (
        ("synthetic_share", "of the images trained on are synthetic"),
        ("fallback_ratio", "of the synthetic slots had to take a real image"),
    ):
        if share := statistics.mean(each.get(key, 0.0) for each in record["drawing"]):
            figures.append((f"{100 * share:.1f} %", words))
    told = sorted(((rule, share) for rule, share in shares.items() if share), key=lambda item: -item[1])
    return {
        "figures": figures,
        "has_drawn": bool(drawing),
        "rules": [
            {
                "name": rule.removeprefix("rejected/"),
                "percent": 100 * share,
                "track": bar_track(share, 0, told[0][1], "drawn"),
            }
            for rule, share in told
        ],
    }


def _pictures(record: Record, pools: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe samples of the class that gained most and of that which gained least, of those drawn."""
    drawn = [row for row in record["classes"] if row["num_accepted"]]
    chosen = [("gained most", drawn[0])] if drawn else []
    chosen += [("gained least", drawn[-1])] if len(drawn) > 1 else []
    return [
        {
            "row": row,
            "words": words,
            "samples": [
                describe_sample(sample, _THUMBNAIL_PX, _QUALITY)
                for sample in _samples_with(pools, row["category_id"], _NUM_PICTURES)
            ],
        }
        for words, row in chosen
    ]


def _samples_with(pools: Sequence[Path], category_id: int, count: int) -> list[PoolSample]:
    """Return some samples that hold a class, in turn from each pool."""
    sources = [_read_samples(pool, category_id) for pool in pools if holds_pool(pool)]
    found: list[PoolSample] = []
    while sources and len(found) < count:
        for source in list(sources):
            sample = next(source, None)
            if sample is None:
                sources.remove(source)
            else:
                found.append(sample)
    return found[:count]


def _read_samples(pool: Path, category_id: int) -> Iterator[PoolSample]:
    reader = PoolReader(pool)
    for ref in reader.poll():
        try:
            sample = reader.read(ref)
        except PoolError:
            continue  # the pool's gallery tells what is wrong with it
        if any(one["category_id"] == category_id for one in sample.annotations):
            yield sample
