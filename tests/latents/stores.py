"""Stores of random latents."""

import numpy as np

from sitcli.latents.layout import create_store, row_checksums
from sitcli.latents.scaling import Scaling
from sitcli.storage.rows import BROKEN, DONE, Rows

NUM, C, SIDE = 12, 3, 4
SPEC = dict(
    name="v", kind="kl", latent_channels=C, downsample=8, deterministic=False, shift=0.25, hash="ab"
)


def make_store(path, *, kind="moments", flips=True, complete=True, scaling=0.5, **other):
    """A store of random latents in which image 4 is broken; returns what was written."""
    shape = (2 * C if kind == "moments" else C, SIDE, SIDE)
    create_store(
        path,
        **dict(
            paths=[f"k{i % 3}/{i}.png" for i in range(NUM)],
            labels=np.arange(NUM) % 3,
            class_names=["k0", "k1", "k2"],
            row_shape=shape,
            kind=kind,
            flips=flips,
            autoencoder=SPEC,
            autoencoder_arrays={"basis": np.eye(3, dtype=np.float32)},
            scaling=scaling if isinstance(scaling, Scaling) else Scaling(scaling, SPEC["shift"]),
            image_size=32,
            crop="adm",
            source="/data/some where",
            source_fingerprint="f",
            vae="some/vae",
            batch_size=4,
            precision="fp32",
        )
        | other,
    )
    rng = np.random.default_rng(0)
    data = np.abs(rng.normal(size=(2, NUM, *shape))).astype(np.float16)
    data[:, 4] = 0
    values = {"latents": data[0]} | ({"latents_flipped": data[1]} if flips else {})
    status = np.full(NUM, DONE)
    status[4] = BROKEN
    with Rows(path, writable=True) as file:
        problems = ["cut short" if i == 4 else "" for i in range(NUM)]
        crc = row_checksums(*values.values())
        file.write(np.arange(NUM), status=status, problems=problems, crc32=crc, **values)
        file.set_attrs(complete=complete)
    return data


def make_two(path, **second):
    """Stores a.h5 and b.h5 of different images."""
    make_store(path / "a.h5")
    make_store(path / "b.h5", **dict(source_fingerprint="g", scaling=0.5) | second)
    return [path / "a.h5", path / "b.h5"]
