"""Images in a zip."""

import os

import pytest

from sitcli.images.place import BrokenImage
from sitcli.images.source import open_source
from tests.images.archives import TREE, write_zip


def test_damage_inside_an_archive_is_one_broken_image(tmp_path):
    """Catches: a bad member that stops the whole source, or passes unnoticed."""
    path = write_zip(tmp_path / "x.zip", TREE)
    source = open_source(path)
    data = bytearray(path.read_bytes())
    data[source.items[1].place.offset + 45] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BrokenImage):
        source.read(1)
    assert source.read_bytes(0) == TREE["a/0.png"]
    os.truncate(path, source.items[2].place.offset + 10)
    with pytest.raises(BrokenImage):
        source.read(2)
