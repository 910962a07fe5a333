"""Image files as pixels: one way for the check and for training, whatever the file's format."""

from pathlib import Path

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """Decode an image file to the last pixel, turned as its EXIF orientation says.

    Args:
        path: in any format that Pillow reads; of several frames the first one is taken.
        size_hw: ``(H, W)`` as annotated, in pixels: that of the turned image, as a viewer shows it.

    Returns:
        uint8[H, W, 3], RGB.

    Raises:
        ValueError: if the file cannot be decoded, or is of another size.
    """
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            stored_hw = (image.height, image.width)
            turned = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
            pixels = _to_rgb(turned)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        told = str(error).replace(f" {str(path)!r}", "")
        raise ValueError(f"image file {path} cannot be decoded: {told}") from None
    if pixels.shape[:2] != tuple(size_hw):
        turn = (
            f", {stored_hw} before EXIF orientation {orientation} turns it" if orientation in _TURNS else ""
        )
        raise ValueError(
            f"image file {path} is {pixels.shape[:2]} (H, W){turn}, its annotation says {tuple(size_hw)}"
        )
    return pixels


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut at 255
        grey = np.asarray(image).astype(np.int64)
        grey = (grey >> 8 if grey.max(initial=0) > 255 else grey).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
