"""Where one image of a source lies."""

from __future__ import annotations

from typing import NamedTuple


class BrokenImage(Exception):
    """One image that cannot be used; the text is the reason, without the image's name."""


class Place(NamedTuple):
    file: str  # path below the source folder, or the member's name in the archive
    size: int  # bytes, unpacked
    offset: int = 0  # archives: where the member's data (zip: its local header) begins
    packed: int = -1  # zip: bytes stored; -1 elsewhere
    deflated: bool = False  # zip
