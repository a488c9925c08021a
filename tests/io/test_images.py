"""Sources of every layout, image files of every kind, and the crops."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from sitcli.errors import SitError
from sitcli.images.decode import decode, to_square
from sitcli.images.place import BrokenImage
from sitcli.images.source import open_source


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def flat_image(value, size=(4, 4)):
    return Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8))


TREE = {f"{kind}/{i}.png": encoded(flat_image(10 * k + i)) for k, kind in enumerate("ba") for i in
        range(3)}  # fmt: skip


def write_folder(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path, files, mode="w", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tar_of_tars(path, files, top=""):
    classes = sorted({name.split("/")[0] for name in files})
    inner = {}
    for name in classes:
        own = {n.split("/")[1]: data for n, data in files.items() if n.startswith(f"{name}/")}
        inner[f"{top}{name}.tar"] = write_tar(path.with_suffix(".part"), own).read_bytes()
    return write_tar(path, inner)


def prefixed(prefix):
    return {prefix + name: data for name, data in TREE.items()}


LAYOUTS = {
    "folder": lambda tmp: write_folder(tmp / "x", TREE),
    "folder in a folder": lambda tmp: write_folder(tmp / "x", prefixed("top/")),
    "tar": lambda tmp: write_tar(tmp / "x.tar", TREE),
    "tar with ./": lambda tmp: write_tar(tmp / "x.tar", prefixed("./")),
    "tar with a top folder": lambda tmp: write_tar(tmp / "x.tar", prefixed("top/")),
    "tar with two": lambda tmp: write_tar(tmp / "x.tar", prefixed("top/images/")),
    "gnu tar, long names": lambda tmp: write_tar(
        tmp / "x.tar", prefixed("t" * 150 + "/"), format=tarfile.GNU_FORMAT
    ),
    "pax tar, long names": lambda tmp: write_tar(
        tmp / "x.tar", prefixed("é" * 150 + "/"), format=tarfile.PAX_FORMAT
    ),
    "tar of tars": lambda tmp: tar_of_tars(tmp / "x.tar", TREE),
    "tar of tars in a folder": lambda tmp: tar_of_tars(tmp / "x.tar", TREE, top="train/"),
    "zip": lambda tmp: write_zip(tmp / "x.zip", prefixed("top/")),
    "stored zip": lambda tmp: write_zip(tmp / "x.zip", TREE, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_source(tmp_path, layout):
    """Catches wrong byte offsets, labels that are not sorted order, wrappers taken for classes."""
    source = pickle.loads(pickle.dumps(open_source(LAYOUTS[layout](tmp_path))))
    assert source.class_names == ["a", "b"]
    assert [item.name for item in source.items] == sorted(TREE)
    assert [item.label for item in source.items] == [0, 0, 0, 1, 1, 1]
    for index, item in enumerate(source.items):
        assert source.read_bytes(index) == TREE[item.name]
        assert source.read(index).getpixel((0, 0)) == (10 * (item.name[0] == "a") + index % 3,) * 3
    assert source.fingerprint == open_source(write_folder(tmp_path / "same", TREE)).fingerprint


def test_flat_sources_have_no_classes(tmp_path):
    """Catches a flat folder's wrapper taken for a class."""
    flat = {f"{i}.jpg": encoded(flat_image(i), "JPEG") for i in range(3)}
    wrapped = {f"photos/{name}": data for name, data in flat.items()}
    for path in (
        write_folder(tmp_path / "x", flat),
        write_tar(tmp_path / "x.tar", flat),
        write_tar(tmp_path / "y.tar", wrapped),
        write_zip(tmp_path / "y.zip", wrapped),
    ):
        source = open_source(path)
        assert source.class_names == []
        assert [item.name for item in source.items] == ["0.jpg", "1.jpg", "2.jpg"]
        assert {item.label for item in source.items} == {0}


def test_one_class_folder_is_a_class(tmp_path):
    """Catches a single class that is seen through, so that its name is lost."""
    one = {name: data for name, data in TREE.items() if name.startswith("a/")}
    for path in (
        write_folder(tmp_path / "x", one),
        write_tar(tmp_path / "x.tar", {f"top/{n}": d for n, d in one.items()}),
        tar_of_tars(tmp_path / "y.tar", one),
    ):
        assert open_source(path).class_names == ["a"]


def test_other_files_are_skipped_and_counted(tmp_path):
    """Catches notes and a file manager's litter encoded as images, or mistaken for classes."""
    litter = {"readme.txt": b"x", "a/.DS_Store": b"x", "__MACOSX/a/._0.png": b"x", "._a": b"x"}
    for path in (
        write_folder(tmp_path / "x", {**TREE, **litter}),
        write_tar(tmp_path / "x.tar", {**TREE, **litter}),
        write_zip(tmp_path / "x.zip", {**TREE, **litter}),
    ):
        source = open_source(path)
        assert (len(source), source.skipped, source.class_names) == (6, 4, ["a", "b"])


def test_a_member_written_again_replaces_the_first(tmp_path):
    """Catches images doubled by `tar -r`, and hard links that tar stores once."""
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


def test_the_fingerprint_sees_names_and_sizes(tmp_path):
    """Catches a changed source that would be mixed into an old store."""
    kinds = [TREE, {**TREE, "a/9.png": b""}, {**TREE, "a/0.png": TREE["a/0.png"] + b"x"}]
    prints = {open_source(write_folder(tmp_path / str(i), f)).fingerprint
              for i, f in enumerate(kinds)}  # fmt: skip
    assert len(prints) == 3


def test_links_are_followed_but_not_in_circles(tmp_path):
    """Catches an endless listing, and class folders that are links left out."""
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


def test_sources_that_cannot_be_used_are_named(tmp_path):
    """Catches tracebacks, and a compressed tar read as if it had byte offsets."""
    write_folder(tmp_path / "mixed", {**TREE, "top.png": TREE["a/0.png"]})
    write_folder(tmp_path / "none", {"a.txt": b"", "b/c.csv": b""})
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("hello")
    write_tar(tmp_path / "x.tar.gz", TREE, mode="w:gz")
    write_tar(tmp_path / "x.tar.xz", TREE, mode="w:xz")
    whole = write_tar(tmp_path / "whole.tar", TREE).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1280])
    (tmp_path / "neat.tar").write_bytes(whole[:2048])
    inner = tar_of_tars(tmp_path / "inner.tar", TREE).read_bytes()
    (tmp_path / "inner.tar").write_bytes(inner.replace(TREE["a/1.png"], b"", 1))
    packed = write_zip(tmp_path / "whole.zip", TREE).read_bytes()
    (tmp_path / "cut.zip").write_bytes(packed[:-40])
    write_zip(tmp_path / "bz.zip", TREE, zipfile.ZIP_BZIP2)
    (tmp_path / "fake.tar").write_bytes(b"not a tar" * 200)
    for name, message in [
        ("absent", "does not exist"), ("empty", "holds no images"),
        ("none", "holds no images, only 2 other"), ("mixed", "beside them .top.png."),
        ("notes.md", "neither a folder nor"), ("x.tar.gz", "is compressed"),
        ("x.tar.xz", "is compressed"), ("cut.tar", "damaged or cut short"),
        ("neat.tar", "damaged or cut short"), ("inner.tar", "damaged or cut short"),
        ("cut.zip", "damaged or cut short"), ("bz.zip", "uncommon compression"),
        ("fake.tar", "damaged or cut short"),
    ]:  # fmt: skip
        with pytest.raises(SitError, match=message):
            open_source(tmp_path / name)


def test_damage_inside_an_archive_is_one_broken_image(tmp_path):
    """Catches a bad member that stops the whole source, or passes unnoticed."""
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


def test_every_mode_becomes_rgb():
    """Catches palettes, greyscale, CMYK or bilevel images with wrong colours."""
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
    """Catches the garbage colours under transparent pixels shining through."""
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
    """Catches every value above 255 turning white, as Pillow's own conversion does."""
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
    """Catches photographs that lie on their side."""
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
    """Catches a half-read JPEG that would be encoded with grey below."""
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
    """Catches another filter, order or rounding than the published models were trained with."""
    picture = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
    image = Image.fromarray(picture)
    result = to_square(image, 32, "adm")
    assert (result.shape, result.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(result, reference_center_crop(image, 32))


def test_other_crops():
    """Catches `resize` that crops, and `none` that touches pixels or lets a wrong size pass."""
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
