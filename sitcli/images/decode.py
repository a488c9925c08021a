"""From the bytes of an image file to a square RGB array."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sitcli.images.endings import unread_format
from sitcli.images.place import BrokenImage
from sitcli.names import Crop


def to_square(image: Image.Image, size: int, crop: Crop) -> np.ndarray:
    """An RGB image as a (size, size, 3) uint8 array.

    Raises BrokenImage if crop is "none" and the image has another size.
    """
    return CROPS[crop].to_square(image, size)


def _stretch(image: Image.Image, size: int) -> np.ndarray:
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def _as_it_is(image: Image.Image, size: int) -> np.ndarray:
    if image.size != (size, size):
        raise BrokenImage(f"is {image.width} x {image.height} pixels, not {size} x {size}")
    return np.array(image)


def _adm_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop (arXiv 2105.05233, its image_datasets.py), which DiT and SiT use too.

    Halving by area averages first keeps bicubic interpolation from aliasing.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    array = np.array(image.resize(scaled, Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


class CropRow(NamedTuple):
    """to_square(image, size) -> (size, size, 3) uint8; any_size: whether it takes any image."""

    to_square: Callable[[Image.Image, int], np.ndarray]
    any_size: bool = True


CROPS: dict[str, CropRow] = {
    "adm": CropRow(_adm_crop),
    "resize": CropRow(_stretch),
    "none": CropRow(_as_it_is, any_size=False),
}


def decode(data: bytes) -> Image.Image:
    """The image in a file's bytes as 8-bit RGB, upright, composited on white if transparent.

    An animation gives its first frame. Raises BrokenImage if the bytes are not a readable image.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), image.format)
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError:
        why = unread_format(data) or "not an image, or in an unknown format"
        raise BrokenImage(why) from None
    except Exception as error:  # Pillow's readers raise whatever their format's parser does
        raise BrokenImage(" ".join(str(error).split()) or type(error).__name__) from None


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    # Pillow gives 16-bit grey as 32-bit integers for some formats and in some versions.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        # Pillow's own conversion clips at 255.
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BrokenImage(f"pixels are 32-bit ({image.mode}), their range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
