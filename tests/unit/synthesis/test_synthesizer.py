import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from mflight.data.categories import Category
from mflight.diffusion.attention import AttentionSettings
from mflight.functional.layout import draw_layout
from mflight.functional.masks import rle_decode
from mflight.synthesis.planner import CategoryPlanner
from mflight.synthesis.pool.writer import PoolWriter
from mflight.synthesis.prompts import PromptBuilder
from mflight.synthesis.request import MosaicRequest, Prompt
from mflight.synthesis.stream import PoolStream
from tests.unit.diffusion.tiny_checkpoint import save_tiny_checkpoint
from tests.unit.synthesis.squares import categories

CATEGORIES = [Category(2, "sea_horse", "a small fish"), Category(5, "cup", "a small container")] * 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("synthesizer") / "sd")


def build(checkpoint, *, area_ratio_range=(0.0, 1.0), **settings):
    """The synthesizer as a config builds it, with a filter that lets most noise pass."""
    node = {
        "_target_": "mflight.synthesis.synthesizer.MosaicSynthesizer",
        "pipeline": {"_target_": "mflight.diffusion.pipeline.load_pipeline", "checkpoint": str(checkpoint)},
        "labeler": {"_target_": "mflight.synthesis.labeler.AttentionLabeler", "sigma_spatial_px": 4.0},
        "region_filter": {
            "_target_": "mflight.synthesis.filters.RegionFilter",
            "area_ratio_range": list(area_ratio_range),
            "max_components": 1000,
            "rescue": True,
        },
        "attention": {"_target_": "mflight.diffusion.attention.AttentionSettings", "levels": [0, 1]},
        "num_inference_steps": 2,
    }
    return instantiate(node | settings, _convert_="all")


def request(index, num_regions=4, **settings):
    draws = random.Random(index)
    layout = draw_layout(
        num_regions=num_regions,
        region_hw=(32, 32),
        overlap_hw=(8, 8),
        center_ratio_range=(0.75, 1.25),
        stride_px=4,
        draws=draws,
    )
    categories = CATEGORIES[:num_regions]
    return MosaicRequest(
        request_id=f"sample-{index}",
        index=index,
        category_ids=tuple(category.category_id for category in categories),
        names=tuple(category.name for category in categories),
        prompts=PromptBuilder().build(categories, draws),
        layout=layout,
        noise_seed=100 + index,
        **settings,
    )


def test_samples_do_not_depend_on_the_batch(checkpoint):
    synthesizer = build(checkpoint)
    requests = [request(0), request(1), request(2, num_regions=1), request(3, num_regions=2)]
    together = synthesizer.synthesize(requests)
    for one, expected in zip(requests, together, strict=True):
        (alone,) = build(checkpoint, max_batch=2).synthesize([one])
        assert np.abs(alone.image.astype(int) - expected.image.astype(int)).max() <= 1
        assert [region["rejected"] for region in alone.regions] == [r["rejected"] for r in expected.regions]


def test_annotations_describe_their_masks(checkpoint):
    (result,) = build(checkpoint).synthesize([request(0)])
    assert result.image.shape == (64, 64, 3) and result.image.dtype == np.uint8
    assert [region["category_id"] for region in result.regions] == [2, 5, 2, 5]
    assert result.annotations
    for annotation in result.annotations:
        region = result.regions[annotation["region"]]
        assert region["rejected"] is None and region["category_id"] == annotation["category_id"]
        mask = rle_decode(annotation["segmentation"])
        rows, columns = np.nonzero(mask)
        assert annotation["area"] == mask.sum()
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        x1, y1, x2, y2 = region["box"]
        assert x1 <= x and y1 <= y and x + width <= x2 and y + height <= y2


def test_sample_carries_all_that_made_it(checkpoint):
    synthesizer = build(checkpoint, guidance_scale=4.0)
    wanted = request(0, negative_prompts=("fish", "", "", ""))
    sample = synthesizer.synthesize([wanted])[0].sample()
    assert sample.sample_id == "sample-0"
    provenance = json.loads(json.dumps(sample.provenance))
    assert MosaicRequest.from_dict(provenance["request"]) == wanted
    assert provenance["checkpoint"] == str(checkpoint)
    assert provenance["weights_sha256"] == synthesizer.pipeline.weights_sha256
    assert len(provenance["weights_sha256"]) == 64
    assert (provenance["scheduler"], provenance["num_inference_steps"]) == ("DDIMScheduler", 2)
    assert provenance["guidance_scales"] == [4.0] * 4
    assert provenance["attention"]["token_rule"] == "name"


def test_a_planned_grid_is_drawn_with_the_guidance_and_negative_prompts_of_its_regions(checkpoint):
    planner = CategoryPlanner(
        categories=categories(),
        prompt_builder=PromptBuilder(),
        num_regions=[],
        grids=[[2, 3]],
        region_hw=(32, 32),
        overlap_hw=(8, 8),
        stride_px=4,
        negative_prompts=["blurred"],
        guidance_scale_range=(2.0, 8.0),
    )
    wanted = planner.request(0)
    (result,) = build(checkpoint).synthesize([wanted])
    assert result.image.shape == (64, 96, 3) and len(result.regions) == 6
    assert [region["box"] for region in result.regions] == [list(box) for box in wanted.layout.region_boxes]
    assert result.provenance["guidance_scales"] == list(wanted.guidance_scales)
    assert len(set(wanted.guidance_scales)) == 6
    assert result.provenance["request"]["negative_prompts"] == ("blurred",) * 6
    (plain,) = build(checkpoint).synthesize([replace(wanted, negative_prompts=(), guidance_scales=())])
    assert not np.array_equal(result.image, plain.image)


def test_attention_may_be_given_as_plain_settings(checkpoint):
    built = build(
        checkpoint,
        attention={"token_rule": "head_noun", "blocks": ["up"], "levels": [0], "stop_evaluation": 1},
    )
    assert built.attention == AttentionSettings(
        token_rule="head_noun", blocks=("up",), levels=(0,), stop_evaluation=1
    )


def test_a_canvas_of_no_finite_numbers_is_dropped_and_harms_no_other(checkpoint):
    good, bad = request(0), request(1)
    (alone,) = build(checkpoint).synthesize([good])
    synthesizer = build(checkpoint)
    embeddings = synthesizer.pipeline.text.text_encoders[0].get_input_embeddings()
    with torch.no_grad():  # a word that only the second request speaks, as a negative prompt
        tokenizer = synthesizer.pipeline.text.tokenizers[0]
        embeddings.weight[tokenizer.convert_tokens_to_ids("sand</w>")] = torch.nan
    first, second = synthesizer.synthesize([good, replace(bad, negative_prompts=("", "sand", "", ""))])
    assert np.abs(first.image.astype(int) - alone.image.astype(int)).max() <= 1
    assert first.is_kept and first.annotations
    assert second.sample() is None and second.annotations == []
    assert {region["rejected"] for region in second.regions} == {"not_finite"}
    assert second.seconds.keys() == first.seconds.keys()


def test_attention_that_is_not_finite_drops_its_canvas(checkpoint):
    synthesizer = build(checkpoint)
    canvases = synthesizer.denoise([request(0)])
    with torch.inference_mode():  # as where the logits of the words overflow, and the output does not
        canvases[0].attention_maps[2][0][0, 0] = torch.inf
    synthesizer.denoise = lambda requests: canvases
    (result,) = synthesizer.synthesize([request(0)])
    assert {region["rejected"] for region in result.regions} == {"not_finite"}


def test_dropped_canvas_gives_no_sample_but_says_why(checkpoint):
    (result,) = build(checkpoint, area_ratio_range=(0.999, 1.0)).synthesize([request(0)])
    assert result.sample() is None
    assert {region["rejected"] for region in result.regions} <= {"too_small", "no_component"}
    assert result.annotations == []


def test_a_rescued_canvas_keeps_its_good_regions_and_the_others_are_ignored(checkpoint, tmp_path):
    """From the diffusion over the pool to the target that the detector is trained on."""
    area_ratio_range = (0.3, 0.68)  # the tiny model's masks lie on both sides of it
    samples = [
        sample
        for result in build(checkpoint, area_ratio_range=area_ratio_range).synthesize(
            [request(index) for index in range(4)]
        )
        if (sample := result.sample()) is not None
    ]
    rescued = [one for one in samples if any(region["rejected"] for region in one.regions)]
    assert rescued
    with PoolWriter(tmp_path / "pool", "w0") as writer:
        for sample in rescued:
            writer.append(sample)
    targets = {t["sample_id"]: t for _, t in PoolStream(pool_dir=tmp_path / "pool", categories=categories())}
    for sample in rescued:
        target = targets[sample.sample_id]
        failed = [region for region in sample.regions if region["rejected"]]
        assert target["ignore_boxes"].tolist() == [region["box"] for region in failed]
        labels = {categories().label_of(region["category_id"]) for region in failed}
        assert set(target["not_exhaustive_labels"].tolist()) == labels
        assert len(target["boxes"]) == len(sample.annotations) == 4 - len(failed)


def test_window_variance_is_a_setting_that_is_told(checkpoint):
    canvases = [
        build(checkpoint, window_variance=variance).synthesize([request(0)])[0] for variance in (0.01, 1.0)
    ]
    assert [one.provenance["window_variance"] for one in canvases] == [0.01, 1.0]
    assert not np.array_equal(canvases[0].image, canvases[1].image)


def test_a_name_too_long_for_the_text_encoder_is_dropped_and_the_others_are_drawn(checkpoint):
    long = request(1)
    name = "monitor " * 40
    long = replace(long, prompts=(Prompt(name, (0, len(name) - 1)), *long.prompts[1:]))
    alone = build(checkpoint).synthesize([request(0)])[0]
    first, dropped, last = build(checkpoint).synthesize([request(0), long, request(2)])
    assert np.abs(first.image.astype(int) - alone.image.astype(int)).max() <= 1
    assert [r.request.request_id for r in (first, dropped, last)] == ["sample-0", "sample-1", "sample-2"]
    assert dropped.sample() is None
    assert [region["rejected"] for region in dropped.regions] == ["name_too_long", None, None, None]


def test_stages_share_their_seconds(checkpoint):
    results = build(checkpoint).synthesize([request(0), request(1)])
    assert [set(result.seconds) for result in results] == [{"denoise", "decode", "label"}] * 2
    assert results[0].seconds["denoise"] > 0


def test_nothing_asked_gives_nothing(checkpoint):
    assert build(checkpoint).synthesize([]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "input_value=0"),
        ({"max_batch": 1}, "input_value=1"),
        ({"guidance_scale": -2.0}, "-2"),
        ({"window_variance": 0.0}, "input_value=0.0"),
    ],
)
def test_wrong_settings_are_refused(checkpoint, settings, message):
    with pytest.raises(ValueError, match=message):
        # hydra wraps what a constructor raises, so the class is called by itself
        type(build(checkpoint))(**(vars_of(build(checkpoint)) | settings))


def vars_of(synthesizer):
    return {key: getattr(synthesizer, key) for key in ("pipeline", "labeler", "region_filter")}
