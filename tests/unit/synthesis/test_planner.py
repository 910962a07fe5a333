import json
from collections import Counter

import pytest

from mflight.synthesis.planner import CategoryPlanner
from mflight.synthesis.prompts import PromptBuilder
from mflight.synthesis.request import MosaicRequest
from mflight.synthesis.signals import Demand
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


def test_every_choice_of_regions_comes_and_boxes_lie_on_the_stride():
    requests = [planner(num_regions=(1, 2, 4)).request(index) for index in range(60)]
    assert {len(request.category_ids) for request in requests} == {1, 2, 4}
    for request in requests:
        assert len(request.prompts) == len(request.names) == len(request.layout.region_boxes)
        assert all(edge % 4 == 0 for box in request.layout.region_boxes for edge in box)


def test_demand_is_noted_and_travels_through_its_file(tmp_path):
    assert Demand.read(tmp_path) is None
    demand = Demand(step=120, weights={2: 0.5, 9: 1.5})
    demand.write(tmp_path)
    assert Demand.read(tmp_path) == demand
    assert planner().request(0, demand).demand_step == 120
    (tmp_path / "demand.json").write_text('{"step": "x", "weights": []}')
    assert Demand.read(tmp_path) is None


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"num_regions": [3]}, "3"),
        ({"rule": "random"}, "random"),
        ({"main_frequency": "frequentt"}, "frequentt"),
    ],
)
def test_settings_out_of_range_are_refused(settings, value):
    with pytest.raises(ValueError, match=value):
        planner(**settings)
