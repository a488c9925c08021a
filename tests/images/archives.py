"""The same image files in folders, tars and zips."""

import io
import json
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


def write_shard(path, samples, **members):
    """A WebDataset shard: {key: {ending: bytes}} in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {f"{key}.{e}": data for key, parts in samples.items() for e, data in parts.items()}
    return write_tar(path, files | members)


def samples_of(numbers, classes=3):
    """Samples of flat PNGs, `i` of grey i and class i % classes, as `write_shard` takes them."""
    return {
        f"{i:06d}": {"png": encoded(flat_image(i)), "cls": b"%d\n" % (i % classes)} for i in numbers
    }


def write_parquet(path, numbers, *, labels=None, names=None, images=None, group=4, **columns):
    """A shard as `datasets` writes it: {bytes, path} of flat PNGs, `i` of grey i, in row groups.

    labels: i % 3 unless said; names: the ClassLabel's; images: the column's values; columns: more.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = list(numbers)
    if images is None:
        images = [{"bytes": encoded(flat_image(i)), "path": f"{i}.png"} for i in numbers]
    labels = [i % 3 for i in numbers] if labels is None else labels
    table = pa.table({"image": images, "label": labels, **columns})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        facts = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(facts)
    pq.write_table(table, path, row_group_size=group)
    return path
