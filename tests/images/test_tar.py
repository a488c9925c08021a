"""Images in a tar."""

import tarfile

from sitcli.images.source import open_source
from tests.images.archives import TREE, encoded, flat_image, write_tar


def test_a_member_written_again_replaces_the_first(tmp_path):
    """Catches: images doubled by `tar -r`, and hard links that tar stores once."""
    path = write_tar(tmp_path / "x.tar", TREE)
    write_tar(path, {"a/0.png": encoded(flat_image(99))}, mode="a")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "b/1.png"
        archive.addfile(link)
    source = open_source(path)
    names = [item.name for item in source.items]
    assert names == sorted([*TREE, "a/link.png"])
    assert source.read(0).getpixel((0, 0)) == (99, 99, 99)
    assert source.read_bytes(names.index("a/link.png")) == TREE["b/1.png"]
