"""What `sit encode-latents` is asked to do, checked before anything is written."""

import shutil
import subprocess

import numpy as np
import pytest

from sitcli.commands.encode.stage import encode, plan
from sitcli.errors import SitError, UsageError
from sitcli.latents.store import LatentStore
from sitcli.storage.rows import Rows
from tests.commands.encode.pictures import encoded, make_images, settings_for, texts


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image_size=16), "made with --image-size 32, not 16"),
        (dict(crop="resize"), "made with --crop adm, not resize"),
        (dict(vae="pixels"), "made with --vae patch-pca, not pixels"),
        (dict(flip=False), "made with flips: True, not False"),
        (dict(pca_channels=6), "made with --pca-channels 12, not 6"),
    ],
)
def test_other_settings_are_refused(source, out, change, message, complete):
    """Catches: two kinds of latents in one store, and an OUT that is spoilt by the attempt."""
    asked = dict(vae="patch-pca", image_size=32)
    encoded(settings_for(source, out, **asked))
    Rows(out).set_attrs(complete=complete)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=message) as failure:
        encoded(settings_for(source, out, **(asked | change)))
    assert "--overwrite" in failure.value.hint
    assert out.read_bytes() == before
    result, _ = encoded(settings_for(source, out, overwrite=True, **(asked | change)))
    assert result.data["images"] == 10
    assert Rows(out).attrs["complete"]


def test_overwrite_goes_on_with_the_same_thing(source, out):
    """Catches: --overwrite that throws away finished work of the very same command."""
    encoded(settings_for(source, out))
    inode = out.stat().st_ino
    _, events = encoded(settings_for(source, out, overwrite=True))
    assert any("complete already" in text for text in texts(events))
    assert out.stat().st_ino == inode


def test_a_complete_store_needs_neither_source_nor_autoencoder(source, out):
    """Catches: a repeated command that does work, or fails once the images are deleted."""
    expected = encoded(settings_for(source, out, vae="patch-pca"))[0].data["checksum"]
    spec = LatentStore.open(out).autoencoder
    Rows(out).set_attrs(autoencoder=spec | {"hash": "0" * 64})
    shutil.rmtree(source)
    result, events = encoded(settings_for(source, out, vae="patch-pca"))
    assert (texts(events), result.data["checksum"]) == ([f"{out} is complete already"], expected)
    Rows(out).set_attrs(complete=False)
    with pytest.raises(SitError):
        encoded(settings_for(source, out, vae="patch-pca"))


def test_the_autoencoder_of_another_store(source, out, tmp_path):
    """Catches: a patch-pca fitted anew on held-out images, which no model of the first could read,
    and a resumed store that cannot find its basis."""
    encoded(settings_for(source, out, vae="patch-pca", pca_channels=6, image_size=32))
    held_out = make_images(tmp_path / "held-out", num=6, side=36)
    stage = encode(settings_for(held_out, tmp_path / "other.h5", vae=str(out), batch_size=2))
    for event in stage:
        if getattr(event, "done", 0) >= 2:
            break
    stage.close()
    result, _ = encoded(settings_for(held_out, tmp_path / "other.h5", vae=str(out), batch_size=2))
    assert result.data["images"] == 6
    first, other = LatentStore.open(out), LatentStore.open(tmp_path / "other.h5")
    assert (other.autoencoder["hash"], other.image_size) == (first.autoencoder["hash"], 32)
    assert np.array_equal(other.autoencoder_arrays["basis"], first.autoencoder_arrays["basis"])
    with pytest.raises(UsageError, match="was made with --vae"):
        encoded(settings_for(held_out, tmp_path / "other.h5", vae="patch-pca", image_size=32))
    with pytest.raises(UsageError, match="--pca-channels has no effect with --vae"):
        encoded(settings_for(held_out, tmp_path / "third.h5", vae=str(out), pca_channels=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(vae="patch-pca", image_size=30), "--image-size 30: patch-pca needs a multiple of 4"),
        (dict(vae="patch-pca", pca_channels=49), "only 48 components"),
        (dict(vae="no/such/thing.pth"), "no autoencoder 'no/such/thing.pth'"),
    ],
)
def test_impossible_settings_write_nothing(source, out, changes, message):
    """Catches: a half-made store for a command that cannot work."""
    with pytest.raises(UsageError, match=message):
        encoded(settings_for(source, out, **changes))
    assert [path.name for path in out.parent.iterdir()] == ["images"]


def test_a_full_disk_is_found_before_the_work(source, tmp_path):
    """Catches: a disk that fills up after hours, and a torso left on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=150000", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(SitError, match=r"no room for .*out.h5: it needs") as failure:
            encoded(settings_for(source, disk / "out.h5", image_size=64))
        assert "free some space" in failure.value.hint
        assert list(disk.iterdir()) == []
        assert encoded(settings_for(source, disk / "out.h5", image_size=16))[0].data["images"] == 10
    finally:
        subprocess.run(["umount", disk], check=True)


def test_dry_run_tells_and_touches_nothing(source, out):
    """Catches: a plan that differs from what is then done, or that leaves files."""
    settings = settings_for(source, out, vae="patch-pca", image_size=64)
    planned = plan(settings)
    assert [path.name for path in out.parent.iterdir()] == ["images"]
    assert (planned.data["images"], planned.data["num_classes"]) == (10, 2)
    done, _ = encoded(settings)
    assert list(planned.data["row_shape"]) == done.data["row_shape"] == [12, 16, 16]
    assert 0 < done.data["bytes"] - planned.data["bytes"] < 30_000
    assert plan(settings).summary["state"] == "10 of 10 images encoded"
    assert plan(settings_for(source, out.with_name("x.h5"), vae="a/b")).data["bytes"] is None
    with pytest.raises(UsageError, match="--image-size 64, not 32"):
        plan(settings_for(source, out, vae="patch-pca"))
    with pytest.raises(UsageError, match="multiple of 8"):
        plan(settings_for(source, out.with_name("x.h5"), vae="stabilityai/sd-vae-ft-ema",
                          image_size=100))  # fmt: skip
