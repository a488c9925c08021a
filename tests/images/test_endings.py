"""Which endings are read, and what is said where this installation of Pillow lacks a part."""

import io

import pytest
from PIL import Image, features

from sitcli.errors import SitError
from sitcli.images.decode import decode
from sitcli.images.endings import ENDINGS, FIRST_ENDINGS, UNREAD_ENDINGS, check_readable, supports
from sitcli.images.place import BrokenImage
from tests.images.archives import flat_image


@pytest.mark.parametrize(
    ("ending", "form", "part"),
    [(".jfif", "JPEG", "jpg"), (".avif", "AVIF", "avif"), (".jp2", "JPEG2000", "jpg_2000")],
)
def test_what_pillow_reads_is_read(ending, form, part):
    """Catches: an ending without a reader. The codecs are lossy, a flat grey is not."""
    assert ending in ENDINGS - FIRST_ENDINGS
    if not supports(part):
        pytest.skip(f"this Pillow has no {part}")
    buffer = io.BytesIO()
    flat_image(200, (16, 16)).save(buffer, form)
    image = decode(buffer.getvalue())
    assert (image.size, image.mode) == ((16, 16), "RGB")
    assert all(abs(value - 200) <= 2 for value in image.getpixel((5, 5)))


def test_endings_are_read_or_not():
    """Catches: an ending in two lists."""
    assert ENDINGS > FIRST_ENDINGS
    assert not ENDINGS & UNREAD_ENDINGS


@pytest.mark.parametrize(("ending", "part"), [(".avif", "avif"), (".jp2", "jpg_2000")])
def test_a_missing_part_of_pillow_is_named(monkeypatch, ending, part):
    """Catches: a whole set of pictures counted as broken one by one, for want of a codec."""
    check_readable({".png"})
    monkeypatch.setattr(features, "check", lambda name: name != part)
    with pytest.raises(SitError, match=f"its part '{part}' is missing") as failure:
        check_readable({".png", ending})
    assert "pip install" in failure.value.hint
    check_readable({".png", ".jpg", ".gif"})


def test_a_part_that_pillow_does_not_know_is_missing():
    """Catches: the warning and the None of features.check in versions before AVIF."""
    assert not supports("a_codec_of_the_future")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, which sit cannot read"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL, which sit cannot read"),
        (b"\xff\x0a....", "JPEG XL, which sit cannot read"),
        (b"hello", "not an image, or in an unknown format"),
    ],
)
def test_pictures_that_cannot_be_read_name_their_format(head, said):
    """Catches: 'unknown format' for a phone's photo with the ending of another format."""
    with pytest.raises(BrokenImage, match=said):
        decode(head + bytes(64))


@pytest.mark.parametrize(
    ("head", "format"),
    [(b"\0\0\0\x1cftypavif", "AVIF"), (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000")],
)
def test_formats_of_a_missing_part_are_named(monkeypatch, head, format):
    """Catches: 'unknown format' where only Pillow's part is missing."""
    monkeypatch.setattr(features, "check", lambda name: False)
    monkeypatch.setattr(Image, "open", _unidentified)
    with pytest.raises(BrokenImage, match=f"{format}, which this installation of Pillow"):
        decode(head + bytes(64))


def _unidentified(file):
    raise Image.UnidentifiedImageError
