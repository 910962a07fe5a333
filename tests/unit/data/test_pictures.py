"""Image files of any format, turned as their EXIF orientation says, or refused with what is wrong."""

import numpy as np
import pytest
from PIL import Image

from mflight.data.pictures import read_picture

HEIGHT, WIDTH = 24, 40


@pytest.fixture
def pixels():
    """Smooth, so that JPEG keeps it, and different in each corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 6, y * 10, (x + y) * 3], axis=2).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_formats_give_the_same_pixels(tmp_path, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_picture(path, (HEIGHT, WIDTH)), pixels)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.unique(read_picture(tmp_path / "a.gif", (HEIGHT, WIDTH)).reshape(-1, 3), axis=0).tolist() == [
        [200, 0, 0]
    ]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tiff" if mode == "CMYK" else "png"
    level = {"1": 255, "I;16": 51400}.get(mode, 200)
    image = Image.new(mode if mode != "P" else "L", (WIDTH, HEIGHT), 0)
    if mode == "I;16":
        image = Image.fromarray(np.full((HEIGHT, WIDTH), level, dtype=np.uint16))
    elif mode == "P":
        image = Image.new("RGB", (WIDTH, HEIGHT), (200, 200, 200)).convert(
            "P", palette=Image.Palette.ADAPTIVE
        )
    elif mode == "CMYK":
        image = Image.new("CMYK", (WIDTH, HEIGHT), (55, 55, 55, 0))
    else:
        image = Image.new(
            mode, (WIDTH, HEIGHT), {"RGBA": (200, 200, 200, 9), "LA": (200, 9)}.get(mode, level)
        )
    image.save(tmp_path / f"a.{suffix}")
    found = read_picture(tmp_path / f"a.{suffix}", (HEIGHT, WIDTH))
    assert found.shape == (HEIGHT, WIDTH, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - (255 if mode == "1" else 200)).max() <= 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_turned_as_a_viewer_shows_it(tmp_path, pixels, orientation):
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: np.rot90(pixels.transpose(1, 0, 2), 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", (HEIGHT, WIDTH)), pixels)
    if orientation >= 5:  # annotated before it was turned
        message = rf"is \(24, 40\) \(H, W\), \(40, 24\) before EXIF orientation {orientation} turns it"
        with pytest.raises(ValueError, match=message):
            read_picture(tmp_path / "a.png", (WIDTH, HEIGHT))


@pytest.mark.parametrize(
    ("share", "told"), [(0.6, "truncated"), (0.0, "cannot identify"), (0.02, "Truncated")]
)
def test_a_file_cut_short_is_refused(tmp_path, pixels, share, told):
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT * 4, WIDTH * 4, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"image file .*a\.jpg cannot be decoded: .*{told}"):
        read_picture(path, (HEIGHT * 4, WIDTH * 4))


def test_another_size_is_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is \(24, 40\) \(H, W\), its annotation says \(9, 9\)"):
        read_picture(tmp_path / "a.png", (9, 9))
