import json
import shutil

import pytest

from mflight.data.categories import Categories
from mflight.data.lvis import read_categories
from mflight.synthesis.pool.settings import SETTINGS_FILE, describe_settings, keep_settings
from tests.unit.synthesis.squares import CATEGORIES, categories

LABELER = {"_target_": "mflight.synthesis.labeler.AttentionLabeler"}
SYNTHESIZER = {"_target_": "mflight.synthesis.synthesizer.MosaicSynthesizer", "guidance_scale": 7.5}


def settings(classes=None, checkpoint="owner/model", planner=None, **synthesizer):
    pipeline = {"checkpoint": checkpoint, "device": "auto"}
    nodes = {"planner": planner or {}, "synthesizer": {**SYNTHESIZER, "pipeline": pipeline, **synthesizer}}
    return describe_settings(**nodes, categories=classes or categories())


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "models" / "sd"
    for name in ("unet", "tokenizer"):
        (folder / name).mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2")
    (folder / "README.md").write_text("a model")
    return folder


def test_a_moved_dataset_and_checkpoint_are_the_same(checkpoint, tmp_path):
    before = settings(checkpoint=str(checkpoint))
    shutil.move(checkpoint, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "README.md").write_text("a model, moved")
    entries = [{**entry, "synonyms": [], "instance_count": 0} for entry in CATEGORIES]
    dataset = {"images": [], "annotations": [], "categories": entries[::-1]}
    annotations = tmp_path / "moved.json"
    annotations.write_text(json.dumps(dataset))
    moved = {"categories": {"annotation_file": str(annotations), "cache_dir": None}}
    after = settings(read_categories(annotations), str(tmp_path / "elsewhere"), moved)
    assert after == before


@pytest.mark.parametrize(
    "name", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"]
)
def test_other_content_in_the_same_place_is_another_checkpoint(checkpoint, name):
    before = settings(checkpoint=str(checkpoint))["synthesizer.pipeline.checkpoint"]
    (checkpoint / name).write_bytes(b"another")
    after = settings(checkpoint=str(checkpoint))["synthesizer.pipeline.checkpoint"]
    assert before.startswith("sha256:") and before != after


def test_what_is_not_loaded_is_no_other_checkpoint(checkpoint):
    parts = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    index = checkpoint / "model_index.json"
    index.write_text(json.dumps({**parts, "safety_checker": [None, None]}, indent=2, sort_keys=True) + "\n")
    before = settings(checkpoint=str(checkpoint))
    for name in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"not loaded")
    (checkpoint / "safety_checker" / "config.json").write_text("{}")
    (checkpoint / "v1-5-pruned.safetensors").write_bytes(b"neither")
    index.write_text(json.dumps({**parts, "safety_checker": ["stable_diffusion", "SafetyChecker"]}))
    assert settings(checkpoint=str(checkpoint)) == before
    index.write_text(json.dumps({**parts, "unet": ["diffusers", "AnotherUNet"]}))
    assert settings(checkpoint=str(checkpoint)) != before


def test_other_classes_in_the_same_place_are_other_settings():
    other = Categories.from_lvis([{**CATEGORIES[0], "name": "pony"}, *CATEGORIES[1:]])
    assert settings(other)["planner.categories"] != settings()["planner.categories"]


def test_a_hub_id_is_itself_and_a_node_is_built():
    assert settings()["synthesizer.pipeline.checkpoint"] == "owner/model"
    node = {"_target_": "mflight.minilvis.checkpoint.checkpoint_folder"}
    assert settings(checkpoint=node)["synthesizer.pipeline.checkpoint"].startswith("sha256:")
    assert settings(checkpoint=None)["synthesizer.pipeline.checkpoint"] is None


def test_what_has_no_effect_is_left_out():
    assert settings(max_batch=8) == settings()
    assert "synthesizer.pipeline.device" not in settings()


def test_a_key_that_one_side_lacks_has_its_default(tmp_path):
    old, new = settings(labeler=LABELER), settings(labeler=LABELER | {"num_bilateral_passes": 2})
    for before, after in ((old, new), (new, old)):
        keep_settings(tmp_path, 7, before, is_new=True)
        keep_settings(tmp_path, 7, after, is_new=False)
        assert json.loads((tmp_path / SETTINGS_FILE).read_text()) == {"7": after}
    other = settings(labeler=LABELER | {"num_bilateral_passes": 3})
    with pytest.raises(ValueError, match=r"drawn with synthesizer\.labeler\.num_bilateral_passes=2 under"):
        keep_settings(tmp_path, 7, other, is_new=False)
    with pytest.raises(
        ValueError, match=r"drawn with synthesizer\.unheard_of=None under seed 7, now it is 1"
    ):
        keep_settings(tmp_path, 7, settings(labeler=LABELER, unheard_of=1), is_new=False)


def test_a_node_that_one_side_lacks_is_the_default_one(tmp_path):
    node = {"_target_": "mflight.diffusion.attention.AttentionSettings", "token_rule": "name"}
    old, new = settings(), settings(attention={**node, "blocks": ["down", "up"]})
    for before, after in ((old, new), (new, old)):
        keep_settings(tmp_path, 7, before, is_new=True)
        keep_settings(tmp_path, 7, after, is_new=False)
    with pytest.raises(ValueError, match=r"attention\.token_rule=name under seed 7, now it is last"):
        keep_settings(tmp_path, 7, settings(attention={**node, "token_rule": "last"}), is_new=False)
    keep_settings(tmp_path, 8, settings(refiner=None), is_new=True)
    with pytest.raises(ValueError, match=r"refiner\._target_=None under seed 8, now it is a\.Refiner"):
        keep_settings(tmp_path, 8, settings(refiner={"_target_": "a.Refiner"}), is_new=False)


def test_settings_are_kept_by_seed(tmp_path):
    for seed, scale in ((7, 3.0), (8, 5.0)):
        keep_settings(tmp_path, seed, settings(guidance_scale=scale), is_new=True)
    with pytest.raises(ValueError, match=r"synthesizer\.guidance_scale=3\.0 under seed 7, now it is 5\.0"):
        keep_settings(tmp_path, 7, settings(guidance_scale=5.0), is_new=False)
    keep_settings(tmp_path, 7, settings(guidance_scale=5.0), is_new=True)
    assert set(json.loads((tmp_path / SETTINGS_FILE).read_text())) == {"7", "8"}
