"""Images in a folder."""

import pytest

from sitcli.images.place import BrokenImage
from sitcli.images.source import open_source
from tests.images.archives import TREE, write_folder


def test_links_are_followed_but_not_in_circles(tmp_path):
    """Catches: an endless listing, and class folders that are links left out."""
    write_folder(tmp_path / "real", TREE)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "k").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "x" / "m").symlink_to(tmp_path / "real" / "b")
    (tmp_path / "real" / "a" / "loop").symlink_to(tmp_path / "x")
    (tmp_path / "real" / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    source = open_source(tmp_path / "x")
    names = [item.name for item in source.items]
    assert names[:3] == ["k/0.png", "k/1.png", "k/2.png"]
    with pytest.raises(BrokenImage, match="No such file"):
        source.read(names.index("m/gone.png"))
