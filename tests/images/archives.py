"""The same image files in folders, tars and zips."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image


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


# Name -> a function of a folder and {name: bytes}, which packs these files there.
PACKED = {
    "folder": lambda tmp, files: write_folder(tmp / "x", files),
    "zip": lambda tmp, files: write_zip(tmp / "x.zip", files),
    "tar": lambda tmp, files: write_tar(tmp / "x.tar", files),
    "tar with a top folder": lambda tmp, files: write_tar(
        tmp / "x.tar", {f"top/{name}": data for name, data in files.items()}
    ),
}
