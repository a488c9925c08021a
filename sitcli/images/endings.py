"""The endings of image files: which are read, which need a part of Pillow, which are not read."""

from __future__ import annotations

import os

from PIL import features

from sitcli.errors import SitError

# What versions up to 0.7 read. A store begun by one of them goes on with its own list of images.
FIRST_ENDINGS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
))  # fmt: skip
JPEG_2000 = (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")
ENDINGS = FIRST_ENDINGS | {".jfif", ".avif", *JPEG_2000}
# Ending -> (Pillow's name of the part that reads it, the format, the version of Pillow that has it)
NEEDS = {".avif": ("avif", "AVIF", "pillow>=11.3")}
NEEDS |= dict.fromkeys(JPEG_2000, ("jpg_2000", "JPEG 2000", "pillow"))
# Pictures that cannot be read. A folder of them alone is a class without images; a folder of notes
# or tables is no class.
UNREAD_ENDINGS = frozenset((
    ".heic", ".heif", ".hif", ".avifs", ".jxl", ".jxr", ".wdp", ".svg", ".psd", ".exr", ".hdr",
    ".tga", ".qoi", ".ico", ".dds", ".apng", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf",
    ".orf", ".rw2", ".raw",
))  # fmt: skip


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case with its dot, '' if it has none."""
    return os.path.splitext(name)[1].lower()


def check_readable(endings: set[str]) -> None:
    """Raise SitError if this build of Pillow lacks what it needs for one of these endings."""
    for ending in sorted(endings & NEEDS.keys()):
        part, name, package = NEEDS[ending]
        if not supports(part):
            raise SitError(
                f"this installation of Pillow reads no {name} images (*{ending}): its part "
                f"'{part}' is missing",
                f"pip install --upgrade '{package}', or convert the images",
            )


def supports(part: str) -> bool:
    """Whether Pillow has this module or codec; older versions do not know the name."""
    known = part in features.modules or part in features.codecs
    return known and bool(features.check(part))


def unread_format(data: bytes) -> str:
    """Why Pillow cannot identify these bytes: 'HEIC, which ...', or '' if the format is unknown."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis"):
        return "" if supports("avif") else "AVIF, which this installation of Pillow cannot read"
    if brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"):
        return "HEIC, which sit cannot read"
    if data[4:12] == b"jP  \r\n\x87\n" or data[:4] == b"\xff\x4f\xff\x51":
        known = supports("jpg_2000")
        return "" if known else "JPEG 2000, which this installation of Pillow cannot read"
    if data[:2] == b"\xff\x0a" or data[4:12] == b"JXL \r\n\x87\n":
        return "JPEG XL, which sit cannot read"
    return ""
