"""Published weights, Detic's and Swin's, by the names of mflight's detectors; what is left out is told."""

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
Rules = Sequence[tuple[str, str]]

_SWIN: Rules = (
    (r"patch_embed\.proj\.", "swin.embeddings.patch_embeddings.projection."),
    (r"patch_embed\.norm\.", "swin.embeddings.norm."),
    (r"(layers\.\d+\.blocks\.\d+)\.norm1\.", r"swin.encoder.\1.layernorm_before."),
    (r"(layers\.\d+\.blocks\.\d+)\.norm2\.", r"swin.encoder.\1.layernorm_after."),
    (r"(layers\.\d+\.blocks\.\d+)\.attn\.proj\.", r"swin.encoder.\1.attention.o_proj."),
    (
        r"(layers\.\d+\.blocks\.\d+\.)attn\.(relative_position_bias)_table",
        r"swin.encoder.\1attention.\2.\2_table",
    ),
    (r"(layers\.\d+\.blocks\.\d+\.mlp\.fc[12]\.)", r"swin.encoder.\1"),
    (r"(layers\.\d+\.downsample\.(?:reduction|norm)\.)", r"swin.encoder.\1"),
)
_SWIN_QKV = re.compile(r"(layers\.\d+\.blocks\.\d+\.)attn\.qkv\.(weight|bias)")
_SWIN_UNUSED = re.compile(r"(head|norm)\.(weight|bias)|.*\.(attn_mask|relative_position_index)")

_DETIC: Rules = (
    (r"backbone\.bottom_up\.base\.", "backbone.body."),
    (r"backbone\.fpn_lateral3\.", "backbone.fpn.inner_blocks.0.0."),
    (r"backbone\.fpn_lateral4\.", "backbone.fpn.inner_blocks.1.0."),
    (r"backbone\.fpn_lateral5\.", "backbone.fpn.inner_blocks.2.0."),
    (r"backbone\.fpn_output3\.", "backbone.fpn.layer_blocks.0.0."),
    (r"backbone\.fpn_output4\.", "backbone.fpn.layer_blocks.1.0."),
    (r"backbone\.fpn_output5\.", "backbone.fpn.layer_blocks.2.0."),
    (r"backbone\.top_block\.", "backbone.fpn.extra_blocks."),
    (r"proposal_generator\.centernet_head\.bbox_tower\.", "rpn.head.tower."),
    (r"proposal_generator\.centernet_head\.bbox_pred\.", "rpn.head.box."),
    (r"proposal_generator\.centernet_head\.agn_hm\.", "rpn.head.heat."),
    (r"(roi_heads\.box_head\.\d)\.fc1\.", r"\1.fc6."),
    (r"(roi_heads\.box_head\.\d)\.fc2\.", r"\1.fc7."),
    (r"(roi_heads\.box_predictor\.\d)\.cls_score\.linear\.", r"\1.classifier.project."),
    (r"(roi_heads\.box_predictor\.\d)\.bbox_pred\.", r"\1.box."),
    (r"roi_heads\.mask_head\.mask_fcn1\.", "roi_heads.mask_head.0.0."),
    (r"roi_heads\.mask_head\.mask_fcn2\.", "roi_heads.mask_head.1.0."),
    (r"roi_heads\.mask_head\.mask_fcn3\.", "roi_heads.mask_head.2.0."),
    (r"roi_heads\.mask_head\.mask_fcn4\.", "roi_heads.mask_head.3.0."),
    (r"roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
_DETIC_CLASSES = re.compile(r"(roi_heads\.box_predictor\.\d)\.cls_score\.(zs_weight|weight|bias)")
_DETIC_SCALE = re.compile(r"proposal_generator\.centernet_head\.scales\.(\d+)\.scale")
_DETIC_SWIN = "backbone.bottom_up."
_DETIC_UNUSED = re.compile(
    r"pixel_(mean|std)|roi_heads\.box_predictor\.\d\.freq_weight"
    r"|backbone\.bottom_up\.base\.(fc\..*|.*num_batches_tracked)"
)


def is_detics(state: Mapping[str, Tensor]) -> bool:
    """Tell whether these are the weights of a detector in Detic's names."""
    return any(key.startswith("proposal_generator.") for key in state)


def name_detics(state: Mapping[str, Tensor]) -> State:
    """Rename the weights of a CenterNet2 in Detic's layout; a name without a rule stays, and will be refused.

    Args:
        state: of Detic's ``.pth``, with a ResNet or a Swin transformer.

    Returns:
        The weights by the names of ``build_centernet2``. Column and row of the background are cut off, and
        means, frequencies and the ImageNet classifier are left out.
    """
    named: State = {}
    scales: dict[int, Tensor] = {}
    swin: State = {}
    for key, value in state.items():
        if match := _DETIC_SCALE.fullmatch(key):
            scales[int(match[1])] = value.reshape(1)
        elif match := _DETIC_CLASSES.fullmatch(key):
            is_text = match[2] == "zs_weight"  # [D, C + 1]
            name = f"{match[1]}.classifier.{'embeddings' if is_text else match[2]}"
            named[name] = value.T[:-1].contiguous() if is_text else value[:-1]
        elif key.startswith(_DETIC_SWIN) and not key.startswith(f"{_DETIC_SWIN}base."):
            swin[key.removeprefix(_DETIC_SWIN)] = value
        elif not _DETIC_UNUSED.fullmatch(key):
            named[_rename(key, _DETIC)] = value
    if scales:
        named["rpn.head.scales"] = torch.cat([scales[level] for level in sorted(scales)])
    named |= {f"backbone.body.{key}": value for key, value in name_swins(swin).items()}
    _tell(key for key in state if _DETIC_UNUSED.fullmatch(key))
    return named


def name_swins(state: Mapping[str, Tensor]) -> State:
    """Rename the weights of a Swin transformer from its authors' names to those of transformers.

    Args:
        state: of the authors' ``.pth``, or of Detic, which has norms of the outputs beside; it may hold names
            of transformers already.

    Returns:
        The weights; the classifier with its norm, and what follows from the sizes, are left out.
    """
    named: State = {}
    for key, value in state.items():
        if match := _SWIN_QKV.fullmatch(key):
            for name, third in zip("qkv", value.chunk(3), strict=True):
                named[f"swin.encoder.{match[1]}attention.{name}_proj.{match[2]}"] = third.clone()
        elif match := re.fullmatch(r"norm(\d)\.(weight|bias)", key):
            named[f"hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}"] = value
        elif not _SWIN_UNUSED.fullmatch(key):
            named[_rename(key, _SWIN)] = value
    _tell(key for key in state if _SWIN_UNUSED.fullmatch(key))
    return named


def _rename(key: str, rules: Rules) -> str:
    for pattern, name in rules:
        if match := re.match(pattern, key):
            return match.expand(name) + key[match.end() :]
    return key


def _tell(keys: object) -> None:
    left_out = sorted(keys)
    if left_out:
        logger.info("left out of the weights: %s", ", ".join(left_out))
