import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, SamModel, SamProcessor

from mflight.detection.segment_anything import SegmentAnything, load_refiner
from tests.unit.detection.tiny_sam import save_tiny_sam

BOXES = np.array([[4, 3, 40, 30], [30, 10, 76, 47], [0, 0, 80, 48], [50, 30, 60, 40.5]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_sam(tmp_path_factory.mktemp("sam") / "tiny-sam")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)


def test_masks_are_those_of_transformers_own_order_of_work(checkpoint, image):
    model, processor = SamModel.from_pretrained(checkpoint), SamProcessor.from_pretrained(checkpoint)
    inputs = processor(images=image, input_boxes=[BOXES.tolist()], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, multimask_output=False)
    (expected,) = processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    masks = SegmentAnything(checkpoint=checkpoint, device="cpu")(image, BOXES)
    assert masks.shape == (4, 48, 80) and masks.dtype == np.bool_
    np.testing.assert_array_equal(masks, expected[:, 0].numpy())
    assert 0.02 < masks.mean() < 0.98 and (masks[0] != masks[2]).any()  # else the comparison says nothing
    few = SegmentAnything(checkpoint=checkpoint, device="cpu", max_boxes=3)
    np.testing.assert_array_equal(few(image, BOXES), masks)


def test_no_box_gives_no_mask(checkpoint, image):
    assert SegmentAnything(checkpoint=checkpoint)(image, np.zeros((0, 4))).shape == (0, 48, 80)


def test_no_checkpoint_is_no_refiner(checkpoint):
    assert load_refiner(checkpoint=None) is None
    assert load_refiner(checkpoint=checkpoint, device="cpu").checkpoint == str(checkpoint)


def test_what_is_no_sam_checkpoint_is_told(tmp_path, checkpoint, image):
    with pytest.raises(FileNotFoundError, match=r"no SAM checkpoint: .*nowhere must be a folder"):
        SegmentAnything(checkpoint=tmp_path / "nowhere")
    CLIPTextConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="must hold a SAM model, it holds one of type 'clip_text_model'"):
        SegmentAnything(checkpoint=tmp_path / "clip")
    segmenter = SegmentAnything(checkpoint=checkpoint, device="cpu")
    with pytest.raises(ValueError, match=r"float\[N, 4\], got shape \[4\]"):
        segmenter(image, BOXES[0])
    with pytest.raises(ValueError, match=r"uint8\[H, W, 3\], got uint8\[48, 80\]"):
        segmenter(image[..., 0], BOXES)
