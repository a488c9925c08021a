"""What is decided before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.import_latents.job import existing, prepare
from sitcli.errors import UsageError
from sitcli.latents.layout import encode_command
from sitcli.latents.scaling import Scaling
from tests import tiny
from tests.autoencoders.files import tiny_kl
from tests.commands.import_latents.others import (
    normal,
    settings_for,
    store_of,
    write_fast_dit,
    write_repa,
    write_shards,
)


@pytest.fixture
def array(tmp_path: Path) -> Path:
    np.save(tmp_path / "z.npy", normal(6, 4, 4, 4))
    return tmp_path / "z.npy"


def job_of(source: Path, **more):
    return prepare(settings_for(source, source.parent / "a.h5", **more))


def test_where_the_scaling_comes_from(tmp_path: Path, array: Path) -> None:
    """Catches: an option that the source or the autoencoder overrules, and a guess."""
    tiny_kl(scaling_factor=0.8, shift_factor=0.1).save_pretrained(tmp_path / "vae")
    vae = str(tmp_path / "vae")
    labels = dict(labels="none")
    with pytest.raises(UsageError, match="does not say how its latents are scaled") as caught:
        job_of(array, **labels)
    assert "--vae NAME, --scaling" in caught.value.hint
    assert job_of(array, vae=vae, **labels).scaling == Scaling(0.8, 0.1)
    assert job_of(array, vae=vae, scaling="0.5", **labels).scaling == Scaling(0.5)
    assert job_of(array, vae=vae, shift="0.2", **labels).scaling == Scaling(0.8, 0.2)
    per_channel = job_of(array, scaling="1,2,1,1", shift="0,0,0,0.1", **labels).scaling
    assert per_channel == Scaling([1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.1])
    assert job_of(array, normalize="channels", **labels).normalize == "channels"
    write_shards(tmp_path / "l")
    assert job_of(tmp_path / "l").scaling.per_channel
    assert job_of(tmp_path / "l", scaling="0.3", shift="1").scaling == Scaling(0.3, 1.0)
    for wrong in ("x", "1,2", "0", "nan", "1,1,1,0", ""):
        with pytest.raises(UsageError, match=r"--scaling .* is not a number, or 4 with commas"):
            job_of(array, scaling=wrong, **labels)
    with pytest.raises(UsageError, match="--shift needs --scaling"):
        job_of(array, shift="1", **labels)
    with pytest.raises(UsageError, match="by what they are scaled"):
        job_of(array, values="scaled", normalize="channels", **labels)


def test_the_autoencoder_decides_shape_and_size(tmp_path: Path, array: Path) -> None:
    """Catches: latents under an autoencoder of other channels, and moments taken for latents."""
    tiny_kl(scaling_factor=1.0).save_pretrained(tmp_path / "vae")
    job = job_of(array, vae=str(tmp_path / "vae"), labels="none")
    assert (job.image_size, job.spec["class"], job.source.moments) == (8, "AutoencoderKL", False)
    assert len(job.spec["hash"]) == 64
    np.save(tmp_path / "m.npy", np.abs(normal(6, 8, 4, 4)))
    job = job_of(tmp_path / "m.npy", vae=str(tmp_path / "vae"), labels="none")
    assert (job.source.moments, job.source.channels) == (True, 4)
    np.save(tmp_path / "m.npy", normal(6, 5, 4, 4))
    with pytest.raises(UsageError, match=r"latents of 5 channels, and .* has 4"):
        job_of(tmp_path / "m.npy", vae=str(tmp_path / "vae"), labels="none")
    with pytest.raises(UsageError, match="--image-size 16 does not fit") as caught:
        job_of(array, vae=str(tmp_path / "vae"), labels="none", image_size=16)
    assert "--image-size 8" in caught.value.hint


def test_an_autoencoder_that_nobody_named(tmp_path: Path, array: Path) -> None:
    """Catches: a guess at the size of images that no option corrects."""
    job = job_of(array, labels="none", scaling="1")
    assert (job.spec["name"], job.spec["downsample"], job.image_size) == ("unknown", 8, 32)
    assert "sit sample will ask for --vae" in job.notes[0]
    assert job_of(array, labels="none", scaling="1", image_size=128).spec["downsample"] == 32
    with pytest.raises(UsageError, match="does not fit latents of 4 x 4"):
        job_of(array, labels="none", scaling="1", image_size=30)


def test_what_out_may_be(tmp_path: Path) -> None:
    """Catches: a store of other latents, or made with other options, that is gone on with."""
    write_repa(tmp_path / "r")
    write_fast_dit(tmp_path / "f")
    out = tmp_path / "a.h5"
    store = store_of(tmp_path / "r", out)
    assert existing(job_of(tmp_path / "r")).attrs["complete"]
    for source, more, message in (
        ("f", {}, "was made with other options"),
        ("r", dict(scaling="0.2"), "was made with other options"),
        ("r", dict(labels="none"), "was made of other latents"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            existing(job_of(tmp_path / source, **more))
        assert f"it was made by: sit import-latents {tmp_path / 'r'} {out}" in caught.value.hint
        assert existing(job_of(tmp_path / source, overwrite=True, **more)) is None
    assert encode_command(store.attrs, out) == f"sit import-latents {tmp_path / 'r'} {out}"
    tiny.make_store(out)
    with pytest.raises(UsageError, match="was made by sit encode-latents"):
        existing(job_of(tmp_path / "r"))
    out.write_text("no store")
    with pytest.raises(UsageError, match="not a readable HDF5"):
        existing(job_of(tmp_path / "r"))
    assert existing(job_of(tmp_path / "r", overwrite=True)) is None


def test_the_command_is_typed_again_with_its_options(array: Path) -> None:
    """Catches: a hint that makes another store."""
    job = job_of(array, labels="none", scaling="1,2,1,1", check=False, values="unscaled")
    assert job.words == ["--scaling=1,2,1,1", "--values=unscaled", "--labels=none", "--no-check"]
