"""What the mask branch is to draw: the mask of an instance, as far as a region shows it."""

from torch import Tensor, cat
from torchvision.ops import roi_align

_MASKS_AT_ONCE = 16  # ground truth masks that are float32 at one time


def cut_masks(masks: Tensor, index: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Cut the mask of an instance to each box: float32[R, side, side] of uint8[N, H, W], int64[R], [R, 4].

    torchvision's own cuts half a pixel off the mark (``roi_align`` with ``aligned=False``), which its way of
    pasting partly makes up for; here both are exact. A crowd of instances is taken a few at a time, for as
    float32 300 masks of 800 x 1333 px are 1.3 GB.
    """
    cut = boxes.new_zeros(len(boxes), side, side)
    for first in range(0, len(masks), _MASKS_AT_ONCE):
        some = masks[first : first + _MASKS_AT_ONCE, None].to(boxes)
        within = (index >= first) & (index < first + len(some))
        # [R, 5]: the "image" of roi_align is the instance
        rois = cat([(index[within] - first)[:, None].to(boxes), boxes[within]], dim=1)
        cut[within] = roi_align(some, rois, (side, side), aligned=True)[:, 0]
    return cut
