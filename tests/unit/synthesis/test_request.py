import json

import pytest

from mflight.functional.layout import MosaicLayout
from mflight.synthesis.request import MosaicRequest, Prompt

LAYOUT = MosaicLayout((32, 64), ((0, 0, 36, 32), (28, 0, 64, 32)), (32, 32))


def request(**changes):
    fields = {
        "request_id": "r-7",
        "index": 7,
        "category_ids": (3, 5),
        "names": ("sea_horse", "cup"),
        "prompts": (Prompt("a sea horse, a fish", (2, 11), (13, 19)), Prompt("a cup", (2, 5))),
        "layout": LAYOUT,
        "noise_seed": 11,
    }
    return MosaicRequest(**(fields | changes))


def test_request_survives_json():
    original = request(negative_prompts=("blurred", ""), guidance_scales=(7.5, 1.0))
    assert MosaicRequest.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_request_of_an_older_pool_is_read():
    assert MosaicRequest.from_dict(request().to_dict() | {"demand_step": 40}) == request()


def test_prompt_knows_its_name():
    assert request().prompts[0].name == "sea horse"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("cup",)}, "names must hold one entry for each of the 2 regions, got 1"),
        ({"negative_prompts": ("x",) * 3}, "negative_prompts .* got 3"),
        ({"guidance_scales": (7.5,)}, "guidance_scales .* got 1"),
        ({"noise_seed": -4}, r"\[0, 2\^63\), got -4"),
    ],
)
def test_request_that_does_not_fit_its_layout_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        request(**changes)


def test_span_outside_of_the_text_is_refused():
    with pytest.raises(ValueError, match=r"name_span .* <= 5, got \(2, 9\) in 'a cup'"):
        Prompt("a cup", (2, 9))
    with pytest.raises(ValueError, match=r"definition_span .* got \(3, 3\)"):
        Prompt("a cup", (2, 5), (3, 3))
