"""`sit encode-latents` again, with more images in its source."""

import json
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from sitcli.commands.encode import fill
from sitcli.commands.encode.grow import growing_path
from sitcli.commands.encode.stage import encode, plan
from sitcli.errors import SitError
from sitcli.events import Progress
from sitcli.latents.store import LatentStore
from sitcli.storage.rows import Rows
from tests.commands.encode.pictures import encoded, settings_for, texts
from tests.images.archives import samples_of, write_parquet, write_shard


def add(source, *names, side=40):
    rng = np.random.default_rng(len(names))
    for name in names:
        (source / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(source / name)


NEW = ("cat/000a.png", "ant/1.png", "dog/zz.png", "bee/1.png", "ant/0.png")
OLD = [*(f"cat/{i:03}.png" for i in range(0, 10, 2)), *(f"dog/{i:03}.jpg" for i in range(1, 10, 2))]


def rows_of(path):
    store = LatentStore.open(path)
    return {
        name: (store.class_names[label], store.rows.array("latents")[row].tobytes(),
               store.rows.array("latents_flipped")[row].tobytes())
        for row, (name, label) in enumerate(zip(store.image_paths(), store.labels, strict=True))
    }  # fmt: skip


def until(settings, done):
    """Run the stage until `done` images are encoded, and leave it there."""
    stage = encode(settings)
    while getattr(next(stage), "done", 0) < done:
        pass
    stage.close()


@pytest.mark.parametrize("vae", ["pixels", "patch-pca"])
def test_new_images_alone_are_encoded(source, out, tmp_path, monkeypatch, vae):
    """Catches: old rows encoded again or moved, classes that are numbered anew under old labels,
    another basis of patch-pca."""
    settings = settings_for(source, out, vae=vae)
    encoded(settings)
    before = LatentStore.open(out)
    first = before.batch(range(10)).numpy(), before.labels.tolist()
    add(source, *NEW)
    sizes, encode_batch = [], fill._encode_batch

    def counted(autoencoder, aligner, pixels, device, *, flips):
        sizes.append(len(pixels))
        return encode_batch(autoencoder, aligner, pixels, device, flips=flips)

    monkeypatch.setattr(fill, "_encode_batch", counted)
    result, events = encoded(settings)
    assert sum(sizes) == 5
    assert f"{out} grows by 5 images to 15" in texts(events)
    assert "new classes have the next numbers: 2 (ant), 3 (bee)" in texts(events)
    store = LatentStore.open(out)
    assert (result.path, result.data["images"]) == (out, 15)
    assert store.class_names == ["cat", "dog", "ant", "bee"]
    assert store.image_paths() == [*OLD, *sorted(NEW)]
    assert store.labels.tolist() == [0] * 5 + [1] * 5 + [2, 2, 3, 0, 1]
    np.testing.assert_array_equal(store.batch(range(10)).numpy(), first[0])
    assert store.labels[:10].tolist() == first[1]
    assert store.attrs["checksum"] == store.checksum()
    assert store.fingerprint != before.fingerprint
    assert store.attrs["grown"] == [{
        "rows": 10, "classes": 2, "fingerprint": before.fingerprint,
        "checksum": before.written_checksum,
    }]  # fmt: skip
    assert not growing_path(out).exists()
    assert texts(encoded(settings)[1]) == [f"{out} is complete already"]
    if vae == "pixels":  # encoded in one go, each image has the same latents
        encoded(settings_for(source, tmp_path / "whole.h5"))
        assert rows_of(out) == rows_of(tmp_path / "whole.h5")


def test_a_store_grows_again(source, out):
    """Catches: the second growth compared with the source's own order, or batches over its seam."""
    encoded(settings_for(source, out))
    add(source, "ant/5.png")
    encoded(settings_for(source, out))
    add(source, "ant/1.png", "aaa/1.png")
    encoded(settings_for(source, out))
    store = LatentStore.open(out)
    assert store.image_paths() == [*OLD, "ant/5.png", "aaa/1.png", "ant/1.png"]
    assert store.class_names == ["cat", "dog", "ant", "aaa"]
    assert [record["rows"] for record in store.attrs["grown"]] == [10, 11]
    Rows(out).set_attrs(complete=False)  # as if its last moment had not come
    _, events = encoded(settings_for(source, out))
    assert any("going on with" in text for text in texts(events))
    assert LatentStore.open(out).attrs["checksum"] == store.attrs["checksum"]
    assert [batch.tolist() for batch in fill._missing_batches(make_missing(out))] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10], [11, 12],
    ]  # fmt: skip


def make_missing(out):
    with Rows(out, writable=True) as file:
        file.write(np.arange(file.num_rows), status=0)
    return Rows(out)


def test_an_interruption_at_any_moment_loses_nothing(source, out, tmp_path, monkeypatch):
    """Catches: a store that is neither the old one nor one that the same command completes."""
    monkeypatch.setattr("sitcli.commands.encode.grow.COPIED", 1)  # a row at a time
    encoded(settings_for(source, out))
    shutil.copy(out, tmp_path / "old.h5")
    before = out.read_bytes()
    add(source, *NEW)
    expected = encoded(settings_for(source, out))[0].data["checksum"]
    moments = 0
    while True:
        shutil.copy(tmp_path / "old.h5", out)
        growing_path(out).unlink(missing_ok=True)
        stage = encode(settings_for(source, out))
        try:
            for _ in range(moments + 1):
                next(stage)
        except StopIteration:
            break
        stage.close()
        assert out.read_bytes() == before
        assert encoded(settings_for(source, out))[0].data["checksum"] == expected
        moments += 1
    assert moments > 15


def test_a_kill_before_the_last_rename(source, out, monkeypatch):
    """Catches: a grown file that is complete and never takes its place."""
    encoded(settings_for(source, out))
    before = out.read_bytes()
    add(source, *NEW)
    with monkeypatch.context() as patch:
        patch.setattr("sitcli.commands.encode.stage.take_place", killed)
        with pytest.raises(ZeroDivisionError):
            encoded(settings_for(source, out))
    assert out.read_bytes() == before
    assert plan(settings_for(source, out)).summary["state"] == "15 of 15 images encoded"
    _, events = encoded(settings_for(source, out))
    assert texts(events) == [f"{out} is complete already"]
    assert LatentStore.open(out).num_items == 15
    assert not growing_path(out).exists()


def killed(*_):
    raise ZeroDivisionError


def test_a_growth_goes_on_where_it_was(source, out):
    """Catches: a growth begun anew, which loses what it had; images of another growth in it."""
    encoded(settings_for(source, out))
    add(source, *(f"ant/{i}.png" for i in range(10)))
    until(settings_for(source, out), 14)
    _, events = encoded(settings_for(source, out))
    assert min(event.done for event in events if isinstance(event, Progress)) == 14
    add(source, *(f"bee/{i}.png" for i in range(10)))
    until(settings_for(source, out), 24)
    add(source, "cow/1.png")
    _, events = encoded(settings_for(source, out))
    assert min(event.done for event in events if isinstance(event, Progress)) == 24
    assert any("1 image came meanwhile" in text for text in texts(events))
    assert encoded(settings_for(source, out))[0].data["images"] == 31
    # A new image is taken away again while the store grows.
    add(source, "eel/1.png", "eel/2.png")
    until(settings_for(source, out), 31)
    (source / "eel" / "1.png").unlink()
    assert encoded(settings_for(source, out))[0].data["images"] == 32
    add(source, "fly/1.png")
    until(settings_for(source, out), 32)
    shutil.rmtree(source / "fly")
    _, events = encoded(settings_for(source, out))
    assert texts(events) == [f"{out} is complete already"]
    assert not growing_path(out).exists()


def test_a_growth_of_another_store_is_not_taken(source, out):
    """Catches: rows of a store that was put in OUT's place, and of the one before, in one file."""
    encoded(settings_for(source, out))
    add(source, *NEW)
    until(settings_for(source, out), 14)
    with Rows(out, writable=True) as file:
        file.write(range(10), latents=np.zeros((10, *file.shape("latents")[1:]), np.float16))
    checksums = np.full(10, zlib.crc32(bytes(file.array("latents")[0].nbytes)), np.uint32)
    with Rows(out, writable=True) as file:
        file.write(range(10), crc32=np.stack([checksums, file.array("crc32")[:, 1]], axis=1))
    Rows(out).set_attrs(checksum=LatentStore(Rows(out)).checksum())
    _, events = encoded(settings_for(source, out))
    assert min(event.done for event in events if isinstance(event, Progress)) == 10
    assert not LatentStore.open(out).batch(range(10)).any()


def test_a_store_that_is_not_complete_grows_too(source, out, tmp_path):
    """Catches: a first encoding that cannot be finished since images were added meanwhile."""
    until(settings_for(source, out), 4)
    add(source, *NEW)
    encoded(settings_for(source, out))
    encoded(settings_for(source, tmp_path / "whole.h5"))
    assert rows_of(out) == rows_of(tmp_path / "whole.h5")


def test_a_reader_reads_on(source, out):
    """Catches: a training whose rows change under it as its store grows."""
    encoded(settings_for(source, out))
    store = LatentStore.open(out)
    expected = store.batch(range(10))
    add(source, *NEW)
    stage = encode(settings_for(source, out))
    while True:
        try:
            next(stage)
        except StopIteration:
            break
        np.testing.assert_array_equal(store.batch(range(10)), expected)
        assert store.replaced() == ""
    np.testing.assert_array_equal(store.batch(range(10)), expected)
    assert store.replaced() == "replaced by another file"


def removed(source):
    (source / "cat" / "004.png").unlink()


def changed(source):
    path = source / "cat" / "004.png"
    path.write_bytes(bytes(path.stat().st_size))


def longer(source):
    path = source / "cat" / "004.png"
    path.write_bytes(path.read_bytes() + b"x")


def renamed(source):
    (source / "cat").rename(source / "lion")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed, r"10 then, 14 now; cat/004\.png is not there"),
        (renamed, r"10 then, 15 now; cat/000\.png is not there"),
        (changed, "files of the same names and sizes, with other contents"),
        (longer, "files of the same names, with other sizes"),
    ],
)
def test_a_source_that_changed_otherwise_is_refused(source, out, change, message):
    """Catches: new rows beside old ones of images that are gone or others."""
    encoded(settings_for(source, out))
    before = out.read_bytes()
    add(source, *NEW)
    change(source)
    with pytest.raises(SitError, match=f"with other images .* {message}") as failure:
        encoded(settings_for(source, out))
    assert "--overwrite" in failure.value.hint
    assert out.read_bytes() == before
    assert not growing_path(out).exists()
    encoded(settings_for(source, out, overwrite=True))
    assert LatentStore.open(out).class_names[0] == "ant"
    assert "grown" not in LatentStore.open(out).attrs


def test_labels_of_old_images_must_stay(source, out):
    """Catches: old rows under labels that a dataset.json has changed."""
    sheet = source / "dataset.json"
    sheet.write_text(json.dumps({"labels": [[name, 2] for name in OLD]}))
    encoded(settings_for(source, out))
    add(source, "cat/x.png")
    labels = [[name, 2] for name in OLD] + [["cat/x.png", 4]]
    sheet.write_text(json.dumps({"labels": [["cat/x.png", 4], *labels[:-2], [OLD[-1], 1]]}))
    with pytest.raises(SitError, match="the same, with other labels"):
        encoded(settings_for(source, out))
    sheet.write_text(json.dumps({"labels": labels}))
    encoded(settings_for(source, out))
    store = LatentStore.open(out)
    assert (store.labels.tolist(), store.class_names) == ([2] * 10 + [4], list("01234"))


def test_a_store_of_0_7_does_not_grow(source, out, monkeypatch):
    """Catches: images added to a store that does not tell what its images held."""
    monkeypatch.setattr(fill, "source_facts", lambda source, labels: {})
    encoded(settings_for(source, out))
    monkeypatch.undo()
    add(source, "cat/x.png")
    with pytest.raises(SitError, match=r"10 then, 11 now, and a store of version 0\.7 or earlier"):
        encoded(settings_for(source, out))


@pytest.mark.parametrize("form", ["wds", "hf"])
def test_new_shards_are_new_images(tmp_path, out, form):
    """Catches: a set that is still being fetched, and each shard's rows as new ones."""

    def shard(number):
        numbers = range(5 * number, 5 * number + 5)
        write_shard(tmp_path / "wds" / f"{number}.tar", samples_of(numbers, classes=number + 2))
        write_parquet(tmp_path / "hf" / f"{number}.parquet", numbers,
                      labels=[i % (number + 2) for i in numbers])  # fmt: skip

    settings = settings_for(tmp_path / form, out, image_size=4)
    for number in (0, 2, 1):
        shard(number)
        encoded(settings)
    store = LatentStore.open(out)
    numbers = [*range(5), *range(10, 15), *range(5, 10)]
    grey = (store.batch(range(15))[:, 0, 0, 0] + 1) * 127.5
    np.testing.assert_allclose(grey, numbers, atol=127.5 / 4096)
    assert store.labels.tolist() == [i % (i // 5 + 2) for i in numbers]
    # A shard is written again with other images.
    write_shard(tmp_path / "wds" / "0.tar", samples_of(range(20, 25), classes=2))
    write_parquet(tmp_path / "hf" / "0.parquet", range(20, 25), labels=[0, 1, 0, 1, 0])
    with pytest.raises(SitError, match="with other images"):
        encoded(settings)


def test_what_the_store_says_of_itself_stays(source, out):
    """Catches: attributes that another version gave the store, lost as it grows."""
    encoded(settings_for(source, out))
    Rows(out).set_attrs(something_new=[1.5, 2.0])
    before = Rows(out).attrs
    add(source, *NEW)
    encoded(settings_for(source, out))
    after = Rows(out).attrs
    changed = {name for name in before.keys() | after if before.get(name) != after.get(name)}
    assert changed == {
        "checksum", "fingerprint", "source_fingerprint", "source_content", "mean", "std", "grown",
    }  # fmt: skip


def test_a_dry_run_of_a_growth_writes_nothing(source, out):
    encoded(settings_for(source, out))
    add(source, *NEW)
    before = {path.name: path.stat().st_mtime_ns for path in out.parent.iterdir()}
    planned = plan(settings_for(source, out))
    assert planned.summary["state"] == "10 of 15 images encoded"
    assert {path.name: path.stat().st_mtime_ns for path in out.parent.iterdir()} == before
