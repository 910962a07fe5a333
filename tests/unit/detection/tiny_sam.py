"""A SAM checkpoint in the format of facebook/sam-vit-huge, of random weights: 64 px, two layers of 16."""

from pathlib import Path

import torch
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

SIDE_PX, HIDDEN = 64, 16


def save_tiny_sam(folder: Path, seed: int = 0) -> Path:
    config = SamConfig(
        vision_config={
            "hidden_size": HIDDEN,
            "output_channels": HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE_PX,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": HIDDEN // 2,
            "mlp_dim": 2 * HIDDEN,
        },
        prompt_encoder_config={"hidden_size": HIDDEN, "image_size": SIDE_PX, "patch_size": 8},
        mask_decoder_config={
            "hidden_size": HIDDEN,
            "mlp_dim": 2 * HIDDEN,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": HIDDEN,
        },
    )
    model = SamModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # the model's own start gives an even grey: no mask that could be wrong
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    quarter = SIDE_PX // 4
    image_processor = SamImageProcessor(
        size={"longest_edge": SIDE_PX},
        pad_size={"height": SIDE_PX, "width": SIDE_PX},
        mask_size={"longest_edge": quarter},
        mask_pad_size={"height": quarter, "width": quarter},
    )
    SamProcessor(image_processor).save_pretrained(folder)
    return folder
