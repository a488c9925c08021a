"""Image files of every kind, and the crops."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sitcli.images.decode import decode, to_square
from sitcli.images.place import BrokenImage
from tests.images.archives import encoded, flat_image


def test_every_mode_becomes_rgb():
    """Catches: palettes, greyscale, CMYK or bilevel images with wrong colours."""
    red = flat_image((200, 30, 40))
    exact = {"PNG": encoded(red), "WebP": encoded(red, "WEBP", lossless=True),
             "BMP": encoded(red, "BMP"), "P": encoded(red.quantize(4)),
             "GIF": encoded(red.quantize(4), "GIF"), "TIFF": encoded(red, "TIFF"),
             "PPM": encoded(red, "PPM")}  # fmt: skip
    for name, data in exact.items():
        image = decode(data)
        assert (image.mode, image.getpixel((2, 2))) == ("RGB", (200, 30, 40)), name
    lossy = {"JPEG": encoded(red, "JPEG"), "CMYK": encoded(red.convert("CMYK"), "JPEG")}
    for name, data in lossy.items():
        assert np.abs(np.array(decode(data)) - np.array([200, 30, 40.0])).max() <= 4, name
    assert decode(encoded(Image.new("L", (2, 2), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert decode(encoded(Image.new("L", (2, 2), 77), "JPEG")).getpixel((0, 0)) == (77, 77, 77)
    assert decode(encoded(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_transparency_is_composited_on_white():
    """Catches: the garbage colours under transparent pixels shining through."""
    clear = (255, 255, 255)
    rgba = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    grey = Image.new("LA", (2, 2), (50, 0))
    assert decode(encoded(rgba)).getpixel((0, 0)) == clear
    assert decode(encoded(rgba, "WEBP", lossless=True)).getpixel((0, 0)) == clear
    assert decode(encoded(half)).getpixel((0, 0)) == (127, 127, 127)
    assert decode(encoded(grey)).getpixel((0, 0)) == clear
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(encoded(palette, transparency=1)).getpixel((0, 0)) == clear
    assert decode(encoded(flat_image(9), transparency=(9, 9, 9))).getpixel((0, 0)) == clear


def png16(values, colour_type):
    """A 16-bit PNG of (H, W) or (H, W, 3) values; Pillow cannot write the coloured kind."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width = values.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    )


def test_16_bit_images_are_scaled_not_clipped():
    """Catches: every value above 255 turning white, as Pillow's own conversion does."""
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    expected = values / 257
    grey = np.array(decode(png16(values, 0)))
    assert np.abs(grey - expected[..., None]).max() <= 0.5
    tiff = np.array(decode(encoded(Image.fromarray(values), "TIFF")))
    assert np.abs(tiff - expected[..., None]).max() <= 0.5
    colour = np.stack([values, values[::-1], values.T], axis=-1)
    assert np.abs(np.array(decode(png16(colour, 2))) - colour / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation):
    """Catches: photographs that lie on their side."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 250  # a bright corner, top left
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(stored))
    image = np.array(decode(encoded(picture, "JPEG", exif=exif, quality=95)))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 4


def test_broken_files_say_why():
    """Catches: a half-read JPEG that would be encoded with grey below."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for format in ("JPEG", "PNG", "WEBP"):
        whole = encoded(Image.fromarray(noise), format)
        with pytest.raises(BrokenImage):
            decode(whole[: len(whole) // 2])
    for data in (b"", b"hello" * 50, b"\xff\xd8\xff"):
        with pytest.raises(BrokenImage, match="not an image"):
            decode(data)
    with pytest.raises(BrokenImage, match="32-bit"):
        decode(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))


def reference_center_crop(image, size):
    """ADM's recipe restated from its description, independently of the code under test."""
    while min(image.size) // 2 >= size:
        image = image.resize(tuple(side // 2 for side in image.size), Image.BOX)
    factor = size / min(image.size)
    image = image.resize(tuple(round(side * factor) for side in image.size), Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "shape", [(300, 200), (64, 64), (65, 130), (127, 600), (40, 30), (257, 33)]
)
def test_adm_crop_is_adms(shape):
    """Catches: another filter, order or rounding than the published models were trained with."""
    picture = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
    image = Image.fromarray(picture)
    result = to_square(image, 32, "adm")
    assert (result.shape, result.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(result, reference_center_crop(image, 32))


def test_other_crops():
    """Catches: `resize` that crops, and `none` that touches pixels or lets a wrong size pass."""
    picture = np.random.default_rng(1).integers(0, 255, (32, 48, 3), np.uint8)
    picture[:, :4] = 0
    wide = Image.fromarray(picture)
    stretched = to_square(wide, 16, "resize")
    assert stretched.shape == (16, 16, 3)
    assert stretched[:, 0].max() < 30  # the border is still there
    with pytest.raises(BrokenImage, match="is 48 x 32 pixels, not 32 x 32"):
        to_square(wide, 32, "none")
    square = wide.crop((0, 0, 32, 32))
    np.testing.assert_array_equal(to_square(square, 32, "none"), np.array(square))
