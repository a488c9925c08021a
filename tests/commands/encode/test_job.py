"""What `sit encode-latents` is asked to do, checked before anything is written."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.encode import fill, job
from sitcli.commands.encode.stage import encode, plan
from sitcli.errors import SitError, UsageError
from sitcli.events import Warn
from sitcli.images.source import open_source
from sitcli.latents.layout import encode_command
from sitcli.latents.store import LatentStore
from sitcli.storage.rows import Rows
from tests.commands.encode.pictures import encoded, make_images, settings_for, texts
from tests.images.archives import samples_of, write_shard


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


def by_0_7(monkeypatch, settings, *, until=4):
    """Begin a store as version 0.7 did: its list of images, and no hash of their contents."""
    with monkeypatch.context() as patch:
        patch.setattr(job, "open_source", lambda path, labels: open_source(path, listing=1))
        patch.setattr(fill, "source_facts", lambda source, labels: {})
        stage = encode(settings)
        for event in stage:
            if getattr(event, "done", 0) >= until:
                break
        stage.close()


def test_a_store_of_0_7_goes_on_with_its_own_classes(source, out, monkeypatch):
    """Catches: other images and shifted classes in the second half of an old store, or one that
    cannot be finished any more."""
    (source / "cow").mkdir()
    (source / "cow" / "1.heic").write_bytes(b"x")
    shutil.copy(source / "cat" / "000.png", source / "cat" / "0.jfif")
    by_0_7(monkeypatch, settings_for(source, out))
    assert "source_content" not in Rows(out).attrs
    _, events = encoded(settings_for(source, out))
    assert any("going on with" in text for text in texts(events))
    store = LatentStore.open(out)
    assert (store.class_names, store.num_items) == (["cat", "dog"], 10)
    assert store.labels.tolist() == [0] * 5 + [1] * 5
    _, events = encoded(settings_for(source, out))
    assert texts(events) == [f"{out} is complete already"]
    # Begun again, all is listed. Of which pictures the old store is, nothing says.
    encoded(settings_for(source, out, overwrite=True))
    store = LatentStore.open(out)
    assert (store.class_names, store.num_items) == (["cat", "cow", "dog"], 11)


@pytest.mark.parametrize("complete", [True, False])
def test_other_pictures_of_the_same_names_and_sizes(source, out, complete):
    """Catches: "complete already" for latents of other pictures, with --overwrite too."""
    changed = source / "dog" / "003.jpg"
    before = changed.read_bytes()
    if complete:
        encoded(settings_for(source, out))
    else:
        stage = encode(settings_for(source, out))
        while getattr(next(stage), "done", 0) < 4:
            pass
        stage.close()
    changed.write_bytes(bytes(len(before)))
    with pytest.raises(SitError, match="the same names and sizes, with other contents") as failure:
        encoded(settings_for(source, out))
    assert "--overwrite" in failure.value.hint
    encoded(settings_for(source, out, overwrite=True))
    assert [name for name, _ in LatentStore.open(out).broken()] == ["dog/003.jpg"]
    _, events = encoded(settings_for(source, out, overwrite=True))
    assert any("complete already" in text for text in texts(events))
    assert any("remove it to encode" in text for text in texts(events))
    changed.write_bytes(before)
    fingerprint = LatentStore.open(out).fingerprint
    encoded(settings_for(source, out, overwrite=True))
    assert LatentStore.open(out).fingerprint != fingerprint


def test_a_shard_that_an_older_version_encoded_without_labels(out, tmp_path, monkeypatch):
    """Catches: a store without classes that stays so without a word, or a store that was begun and
    cannot be finished."""
    shard = write_shard(tmp_path / "x.tar", samples_of(range(6)))
    with monkeypatch.context() as patch:
        patch.setattr(job, "LISTING", 2)
        patch.setattr(job, "open_source", lambda path, labels: open_source(path, listing=2))
        stage = encode(settings_for(shard, out))
        while getattr(next(stage), "done", 0) < 4:
            pass
        stage.close()
    encoded(settings_for(shard, out))
    assert LatentStore.open(out).class_names == []
    _, events = encoded(settings_for(shard, out))
    assert ["--overwrite" in text for text in texts(events, Warn)] == [True]
    encoded(settings_for(shard, out, overwrite=True))
    assert LatentStore.open(out).labels.tolist() == [0, 1, 2, 0, 1, 2]
    _, events = encoded(settings_for(shard, out))
    assert texts(events, Warn) == []


def test_a_zip_is_compared_by_all_its_checksums(source, out, tmp_path, monkeypatch):
    """Catches: one changed picture among many that are not looked into."""
    monkeypatch.setattr("sitcli.images.source.COMPARED", 2)
    encoded(settings_for(Path(shutil.make_archive(tmp_path / "x", "zip", source)), out))
    middle = source / "cat" / "004.png"
    middle.write_bytes(bytes(middle.stat().st_size))
    shutil.make_archive(tmp_path / "x", "zip", source)
    with pytest.raises(SitError, match="with other contents"):
        encoded(settings_for(tmp_path / "x.zip", out))


def test_changed_labels_are_other_images(source, out):
    """Catches: old labels kept beside a dataset.json that was corrected."""
    names = [item.name for item in open_source(source).items]
    sheet = source / "dataset.json"
    sheet.write_text(json.dumps({"labels": [[name, 2] for name in names]}))
    encoded(settings_for(source, out))
    attrs = Rows(out).attrs
    assert (attrs["labels"], attrs["labels_from"]) == ("auto", "dataset.json")
    sheet.write_text(json.dumps({"labels": [[name, 1] for name in names]}))
    with pytest.raises(SitError, match="the same, with other labels"):
        encoded(settings_for(source, out))
    sheet.write_text("{}")
    with pytest.raises(SitError, match="does not have the form"):
        encoded(settings_for(source, out))
    sheet.unlink()
    with pytest.raises(SitError, match="the same, with other labels"):
        encoded(settings_for(source, out))
    encoded(settings_for(source, out, overwrite=True))
    assert LatentStore.open(out).class_names == ["cat", "dog"]


def test_labels_are_a_setting_of_the_store(source, out):
    """Catches: --labels ignored for a store that was begun without it, or lost from the command
    that a store names."""
    encoded(settings_for(source, out, labels="none"))
    store = LatentStore.open(out)
    assert (store.class_names, set(store.labels)) == ([], {0})
    assert "--labels none" in encode_command(store.attrs, out)
    with pytest.raises(UsageError, match="made with --labels none, not folders"):
        encoded(settings_for(source, out, labels="folders"))
    encoded(settings_for(source, out, labels="folders", overwrite=True))
    # What auto would have come to is the same.
    encoded(settings_for(source, out, overwrite=True))
    _, events = encoded(settings_for(source, out, labels="folders"))
    assert texts(events) == [f"{out} is complete already"]


def test_counters_are_asked_about_before_anything_is_written(tmp_path, out):
    """Catches: thousands of classes that are none, or a question after the work."""
    folder = make_images(tmp_path / "x", num=4, classes=("00000",))
    for i, path in enumerate(sorted(folder.rglob("*.*"))):
        place = folder / f"{i // 2:05d}"
        place.mkdir(exist_ok=True)
        path.rename(place / f"img{i:08d}.png")
    for ask in (plan, encoded):
        with pytest.raises(UsageError, match=r"are the folders 00000, 00001 classes\?"):
            ask(settings_for(folder, out))
    assert not out.exists()
    result, _ = encoded(settings_for(folder, out, labels="none"))
    assert result.data["num_classes"] == 0
