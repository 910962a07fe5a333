import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from mflight.functional.masks import rle_encode
from mflight.synthesis.gallery_page import pool_to_html
from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.small_pool import fill_pool
from tests.unit.synthesis.squares import make_sample


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="pool">(.*?)</script>', page, re.S)
    return json.loads(text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Eight requests: 3 and 7 are dropped; of each kept one region 0 is rejected."""
    return pool_to_html(fill_pool(tmp_path_factory.mktemp("gallery") / "my pool", 8))


def test_regions_are_counted_by_rule_and_class_also_those_of_dropped_canvases(page):
    data = data_of(page)
    assert (data["name"], data["num_samples"], data["num_dropped"]) == ("my pool", 6, 2)
    counts = data["counts"]
    assert counts["total"] == {"kept": 6 * 3, "lost": 0, "rejected": {"area": 6 + 8}}
    assert counts["rules"] == ["area"]
    for key in ("kept", "lost"):
        assert sum(one[key] for one in counts["classes"]) == counts["total"][key]
    assert sum(one["rejected"].get("area", 0) for one in counts["classes"]) == 14
    regions = [region for sample in data["samples"] for region in sample["regions"]]
    for one in counts["classes"]:
        kept = [region for region in regions if region["name"] == one["name"] and not region["rejected"]]
        assert one["kept"] == len(kept)


def test_good_regions_of_dropped_canvases_are_lost(tmp_path):
    bad = [{"category_id": 5, "rejected": rule} for rule in (None, "too_small", None)]
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(make_sample(0), index=0)
        writer.drop("7-00000001", bad, index=1)
    counts = data_of(pool_to_html(tmp_path))["counts"]
    assert counts["total"] == {"kept": 1, "lost": 2, "rejected": {"too_small": 1}}
    assert [one["lost"] for one in counts["classes"]] == [2, 0]


def test_samples_carry_prompt_verdict_mask_and_picture(page):
    sample = data_of(page)["samples"][0]
    assert sample["id"] == "7-00000000"
    bad, good = sample["regions"][:2]
    assert (bad["rejected"], bad["path"]) == ("area", None)
    assert good["rejected"] is None and good["prompt"].startswith("a photo of a single ")
    x1, y1, x2, y2 = good["box"]
    side, height = x2 - x1 - 8, y2 - y1 - 8
    assert good["path"] == f"M{x1 + 4} {y1 + 4}v{height}h{side}v{-height}z"
    picture = base64.b64decode(sample["image"].removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(picture)).size == (sample["width"], sample["height"])
    assert sample["facts"]["checkpoint"] == "models/squares"


def test_big_images_are_shown_smaller_with_masks_to_scale(tmp_path):
    mask = np.zeros((200, 100), bool)
    mask[40:80, 20:60] = True
    sample = dataclasses.replace(
        make_sample(0),
        image=np.zeros((200, 100, 3), np.uint8),
        annotations=[{"category_id": 2, "region": 0, "segmentation": rle_encode(mask)}],
    )
    with PoolWriter(tmp_path, "w0") as writer:
        writer.append(sample)
    (shown,) = data_of(pool_to_html(tmp_path, thumbnail_px=50))["samples"]
    assert (shown["width"], shown["height"], shown["scale"]) == (100, 200, [4, 4])
    assert shown["regions"][0]["path"] == "M5 10v10h10v-10z"
    picture = base64.b64decode(shown["image"].partition(",")[2])
    assert Image.open(io.BytesIO(picture)).size == (25, 50)


def test_shown_images_are_spread_over_the_pool_and_the_counts_are_of_all(tmp_path):
    with PoolWriter(tmp_path, "w0") as writer:
        for index in range(10):
            writer.append(make_sample(index), index=index)
    data = data_of(pool_to_html(tmp_path, max_images=3))
    assert [sample["id"][-2:] for sample in data["samples"]] == ["00", "03", "06"]
    assert data["num_samples"] == data["counts"]["total"]["kept"] == 10


def test_nothing_in_a_pool_can_leave_the_data(tmp_path):
    folder = tmp_path / "<b>&pool"
    evil = "</script><script>alert(1)</script><!--"
    prompt = {"text": evil, "name_span": [0, 3], "definition_span": None}
    sample = dataclasses.replace(
        make_sample(0), provenance={"request": {"names": [evil], "prompts": [prompt]}}
    )
    with PoolWriter(folder, "w0") as writer:
        writer.append(sample)
    page = pool_to_html(folder)
    assert "alert(1)" in page and "<script>alert" not in page and "<b>" not in page
    assert page.count("</script>") == 2
    assert data_of(page)["samples"][0]["regions"][0]["name"] == evil


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no pool: it has no pool\.db"):
        pool_to_html(tmp_path)
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        pool_to_html(tmp_path, max_images=0)
