import hashlib
import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from mflight.functional.layout import draw_layout
from mflight.synthesis.planner import CategoryPlanner
from mflight.synthesis.prompts import PromptBuilder
from mflight.synthesis.request import MosaicRequest
from tests.unit.synthesis.squares import categories

SIZES = {"region_hw": (32, 32), "overlap_hw": (8, 8), "stride_px": 4}


def planner(**settings):
    builder = PromptBuilder(templates=["a photo of a single {name}, {definition}"])
    return CategoryPlanner(categories=categories(), prompt_builder=builder, **{**SIZES, **settings})


def test_request_depends_on_seed_and_index_only():
    first, second = planner(seed=3), planner(seed=3)
    forwards = [first.request(index) for index in range(20)]
    backwards = [second.request(index) for index in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert planner(seed=4).request(0) != forwards[0]
    assert len({request.noise_seed for request in forwards}) == 20
    assert forwards[7].request_id == first.request_id(7) == "3-00000007"


def test_request_survives_json():
    request = planner().request(5)
    assert MosaicRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_published_rule_takes_rare_classes_in_turn():
    rare = {2, 9}  # image counts 3 and 7
    requests = [planner(num_regions=[1]).request(index) for index in range(40)]
    mains = [request.category_ids[0] for request in requests]
    assert all(set(mains[turn : turn + 2]) == rare for turn in range(0, 40, 2))
    assert len({tuple(mains[turn : turn + 2]) for turn in range(0, 40, 2)}) == 2  # shuffled anew every round


def test_published_partners_come_from_all_classes_at_any_place():
    requests = [planner(num_regions=(4,)).request(index) for index in range(400)]
    counts = Counter(category_id for request in requests for category_id in request.category_ids)
    assert set(counts) == {2, 5, 9, 11}
    assert counts[2] + counts[9] == pytest.approx(400 + 600, abs=80)
    assert counts[5] == pytest.approx(300, abs=60)
    assert len({request.category_ids.index(5) for request in requests if 5 in request.category_ids}) == 4


def test_inverse_frequency_prefers_the_rarer_of_two():
    requests = [planner(rule="inverse_frequency").request(index) for index in range(500)]
    counts = Counter(category_id for request in requests for category_id in request.category_ids)
    assert counts[2] / counts[9] == pytest.approx(7 / 3, rel=0.2)
    assert counts[9] / counts[11] == pytest.approx(40 / 7, rel=0.3)


@pytest.mark.parametrize(
    ("settings", "mains", "partners"),
    [
        ({"main_frequencies": ["rare"], "partner_frequencies": ["rare"]}, {2, 9}, {2, 9}),
        ({"main_frequencies": ["rare"], "partner_frequencies": ["rare", "common"]}, {2, 9}, {2, 9, 11}),
        ({"main_frequencies": ["rare", "common"]}, {2, 9, 11}, {2, 5, 9, 11}),
        ({"main_frequencies": ["rare", "common", "frequent"]}, {2, 5, 9, 11}, {2, 5, 9, 11}),
        ({"main_frequencies": ["rare"], "partner_frequencies": ["frequent"]}, {2, 9}, {5}),
    ],
)
def test_main_classes_come_in_turn_and_partners_from_their_own_groups(settings, mains, partners):
    single = planner(num_regions=[1], **settings)
    in_turn = [single.request(index).category_ids[0] for index in range(len(mains))]
    assert sorted(in_turn) == sorted(mains)
    counts = Counter()
    for index in range(120):
        request = planner(num_regions=[4], **settings).request(index)
        (main,) = single.request(index).category_ids
        counts += Counter(request.category_ids) - Counter([main])
    assert set(counts) == partners and counts.total() == 360
    assert max(counts.values()) / min(counts.values()) < 1.6  # alike


def test_inverse_frequency_draws_every_region_as_a_partner():
    inverse = planner(rule="inverse_frequency", partner_frequencies=["common", "frequent"])
    counts = Counter(one for index in range(300) for one in inverse.request(index).category_ids)
    assert set(counts) == {5, 11} and counts[11] / counts[5] == pytest.approx(200 / 40, rel=0.2)


def test_every_choice_of_regions_comes_and_boxes_lie_on_the_stride():
    requests = [planner(num_regions=(1, 2, 4)).request(index) for index in range(60)]
    assert {len(request.category_ids) for request in requests} == {1, 2, 4}
    for request in requests:
        assert len(request.prompts) == len(request.names) == len(request.layout.region_boxes)
        assert all(edge % 4 == 0 for box in request.layout.region_boxes for edge in box)


def test_grids_are_choices_beside_the_published_ones():
    requests = [planner(num_regions=[1], grids=[[2, 3], [1, 5]]).request(index) for index in range(60)]
    canvases = {(len(one.category_ids), one.layout.canvas_hw) for one in requests}
    assert canvases == {(1, (32, 32)), (6, (64, 96)), (5, (32, 160))}
    for request in requests:
        assert len(request.prompts) == len(request.names) == len(request.layout.region_boxes)
        assert all(edge % 4 == 0 for box in request.layout.region_boxes for edge in box)
    only = [planner(num_regions=[], grids=[[3, 2]]).request(index) for index in range(9)]
    assert {one.layout.canvas_hw for one in only} == {(96, 64)}
    assert len({one.layout for one in only}) == 9  # every line is jittered


def test_published_settings_draw_in_the_published_order():
    """Count, partners, shuffle, layout, noise seed: nothing that a new setting brings comes in between."""
    published = planner(num_regions=(1, 2, 4), seed=3)
    for index in range(30):
        request, draws = published.request(index), random.Random(f"3/request/{index}")
        count = draws.choice((1, 2, 4))
        chosen = [None, *(draws.choice(categories()) for _ in range(count - 1))]
        draws.shuffle(chosen)
        for drawn, category_id in zip(chosen, request.category_ids, strict=True):
            assert drawn is None or drawn.category_id == category_id  # None: the main class
        layout = draw_layout(num_regions=count, draws=draws, center_ratio_range=(0.75, 1.25), **SIZES)
        assert (request.layout, request.noise_seed) == (layout, draws.getrandbits(31))
        assert request.negative_prompts == () == request.guidance_scales


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({}, "ea76fde6438f8a80"),
        (
            {"num_regions": (1, 2, 4), "guidance_scale_range": (2.0, 8.0), "negative_prompts": ["a", "b"]},
            "5cbe4892bcff714b",
        ),
        ({"rule": "inverse_frequency"}, "424bc85a4c8e30a0"),
    ],
)
def test_requests_are_those_recorded_at_5a5cafc(settings, digest):
    """So a pool goes on where an earlier version has left it."""
    said = hashlib.sha256()
    recorded = planner(seed=3, **settings)
    for index in range(50):
        said.update(json.dumps(recorded.request(index).to_dict(), sort_keys=True).encode())
    assert said.hexdigest()[:16] == digest


def test_negative_prompts_and_guidance_are_drawn_for_each_region_and_change_nothing_else():
    settings = {"negative_prompts": ["blurred", "cropped"], "guidance_scale_range": [2.0, 8.0]}
    plain, varied = ([planner(**one).request(index) for index in range(50)] for one in ({}, settings))
    for before, after in zip(plain, varied, strict=True):
        assert replace(after, negative_prompts=(), guidance_scales=()) == before
        assert len(after.negative_prompts) == len(after.guidance_scales) == 4
    scales = [scale for request in varied for scale in request.guidance_scales]
    assert 2.0 <= min(scales) < 2.3 and 7.7 < max(scales) <= 8.0 and len(set(scales)) == 200
    texts = Counter(text for request in varied for text in request.negative_prompts)
    assert set(texts) == {"blurred", "cropped"} and min(texts.values()) > 70
    assert any(len(set(request.negative_prompts)) == 2 for request in varied)
    assert MosaicRequest.from_dict(json.loads(json.dumps(varied[0].to_dict()))) == varied[0]


def test_one_negative_prompt_and_one_guidance_scale_hold_for_every_region():
    request = planner(negative_prompts=["blurred"], guidance_scale_range=(5.0, 5.0)).request(0)
    assert request.negative_prompts == ("blurred",) * 4 and request.guidance_scales == (5.0,) * 4


def test_consecutive_requests_may_share_a_layout_and_nothing_else():
    requests = [planner(requests_per_layout=4).request(index) for index in range(40)]
    layouts = [request.layout for request in requests]
    assert all(len(set(layouts[turn : turn + 4])) == 1 for turn in range(0, 40, 4))
    assert len(set(layouts)) > 5 and len({request.noise_seed for request in requests}) == 40


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"num_regions": [3]}, "3"),
        ({"num_regions": []}, r"one choice at least, got \[\] and \(\)"),
        ({"grids": [[2, 0]]}, "input_value=0"),
        ({"grids": [[2]]}, r"grids\.0\.1"),
        ({"negative_prompts": "blurred"}, "input_value='blurred'"),
        ({"guidance_scale_range": [8.0, 2.0]}, r"must rise, got \(8.0, 2.0\)"),
        ({"guidance_scale_range": [-1.0, 2.0]}, "input_value=-1.0"),
        ({"requests_per_layout": 0}, "input_value=0"),
        ({"rule": "random"}, "random"),
        ({"rule": "adaptive"}, "adaptive"),
        ({"main_frequencies": ["frequentt"]}, "frequentt"),
        ({"main_frequencies": []}, r"no class is of main_frequencies=\[\]: Categories\(4: 2 rare"),
        ({"partner_frequencies": []}, r"no class is of partner_frequencies=\[\]: Categories\(4: 2 rare"),
    ],
)
def test_settings_out_of_range_are_refused(settings, value):
    with pytest.raises(ValueError, match=value):
        planner(**settings)
