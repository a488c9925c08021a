"""``sit encode-latents`` on small real images: contents, interruptions, refusals."""

import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sitcli.autoencoders.load import from_spec, load_autoencoder
from sitcli.commands.encode.reader import PictureBatches
from sitcli.commands.encode.stage import encode, plan
from sitcli.errors import Interrupted, SitError, UsageError
from sitcli.events import Note, Progress, Warn
from sitcli.images.decode import to_square
from sitcli.images.source import open_source
from sitcli.latents.store import LatentStore
from sitcli.settings.encode import EncodeSettings
from sitcli.storage import locks
from sitcli.storage.rows import MISSING, Rows

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"


def make_images(folder, *, num=10, classes=("cat", "dog"), side=40):
    """`num` noisy JPEG and PNG files, in turn in each class; returns the folder."""
    rng = np.random.default_rng(0)
    for i in range(num):
        pixels = rng.integers(0, 256, (side, side + i % 3, 3), np.uint8)
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:03}.{'jpg' if i % 2 else 'png'}")
    return folder


def settings_for(source, out, **changes):
    defaults = dict(vae="pixels", batch_size=4, workers=0, device="cpu")
    return EncodeSettings(source=source, out=out, **(defaults | changes))


def run(settings):
    """(result, events) of the whole stage."""
    stage, events = encode(settings), []
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            return end.value, events


def texts(events, kind=Note):
    return [event.text for event in events if isinstance(event, kind)]


@pytest.fixture
def source(tmp_path):
    return make_images(tmp_path / "images")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.h5"


def test_latents_are_the_images_and_their_mirror_images(source, out):
    """Catches shuffled rows, wrong labels, wrong value range, and flips along the wrong axis."""
    result, events = run(settings_for(source, out, image_size=40, crop="none"))
    # 7 of 10 are not square.
    assert result.data["images"] == 4
    run(settings_for(source, out, image_size=40, crop="resize", overwrite=True))
    store = LatentStore.open(out)
    assert store.class_names == ["cat", "dog"]
    assert store.labels.tolist() == [0] * 5 + [1] * 5
    assert store.image_paths()[4:6] == ["cat/008.png", "dog/001.jpg"]
    for index, name in enumerate(store.image_paths()):
        with Image.open(source / name) as image:
            pixels = np.array(image.resize((40, 40), Image.BICUBIC)).astype(np.float32)
        expected = pixels.transpose(2, 0, 1) / 127.5 - 1
        plain, mirrored = store.batch([index, index], flip=np.array([False, True])).numpy()
        np.testing.assert_allclose(plain, expected, atol=5e-4)
        np.testing.assert_allclose(mirrored, expected[:, :, ::-1], atol=5e-4)
    assert [e.done for e in events if isinstance(e, Progress)][:4] == [0, 4, 8, 10]


def test_what_the_store_says_of_itself(source, out):
    """Catches provenance or statistics that are left at their placeholders."""
    result, _ = run(settings_for(source, out))
    store = LatentStore.open(out)
    assert (store.image_size, store.crop, store.kind) == (32, "adm", "latents")
    assert store.source == str(source)
    assert store.attrs["checksum"] == store.checksum() == result.data["checksum"]
    everything = torch.cat([store.batch(range(10), flip=np.full(10, f)) for f in (False, True)])
    np.testing.assert_allclose(store.mean, everything.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(store.std, everything.std((0, 2, 3)), rtol=1e-3)
    assert (result.path, result.data["bytes"]) == (out, out.stat().st_size)
    assert "--latents" in result.next  # OUT is not below the current folder


def test_next_is_plain_train_where_train_would_find_it(source, tmp_path, monkeypatch):
    """Catches a suggestion that trains on another store."""
    monkeypatch.chdir(tmp_path)
    assert run(settings_for(source, Path("a.h5")))[0].next == "sit train"
    run(settings_for(source, Path("b.h5")))
    assert run(settings_for(source, Path("a.h5")))[0].next == "sit train --latents a.h5"


def test_broken_images_are_counted_named_and_left_out(source, out):
    """Catches broken images that are dropped silently, stop the work, or shift the labels."""
    (source / "cat" / "004.png").write_bytes(b"nonsense")
    whole = (source / "dog" / "009.jpg").read_bytes()
    (source / "dog" / "009.jpg").write_bytes(whole[: len(whole) // 2])
    result, events = run(settings_for(source, out))
    store = LatentStore.open(out)
    assert [name for name, _ in store.broken()] == ["cat/004.png", "dog/009.jpg"]
    assert "truncated" in store.broken()[1][1]
    assert result.summary["broken"].startswith("2 (cat/004.png: not an image")
    assert len(texts(events, Warn)) == 2
    assert store.labels.tolist() == [0] * 4 + [1] * 4
    with pytest.raises(SitError, match=r"broken image cat/004.png"):
        run(settings_for(source, out, strict=True))
    with pytest.raises(SitError, match=r"broken image cat/004.png"):
        run(settings_for(source, out.with_name("strict.h5"), strict=True))
    assert not Rows(out.with_name("strict.h5")).attrs["complete"]
    # The good images do not change for it.
    again, _ = run(settings_for(source, out.with_name("strict.h5")))
    assert again.data["checksum"] == result.data["checksum"]


def test_a_source_without_one_good_image_is_an_error(source, out):
    """Catches a complete store of nothing."""
    with pytest.raises(SitError, match=r"none of the 10 images can be used.*pixels") as failure:
        run(settings_for(source, out, crop="none"))
    assert "--crop adm" in failure.value.hint
    assert not Rows(out).attrs["complete"]


def test_workers_and_archives_change_nothing(source, out, tmp_path):
    """Catches results that depend on arrival order or on how the source is packed."""
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(source, "images")
    checksums = {
        run(settings)[0].data["checksum"]
        for settings in (
            settings_for(source, out),
            settings_for(source, tmp_path / "b.h5", workers=2),
            settings_for(tmp_path / "images.tar", tmp_path / "c.h5", workers=1),
        )
    }
    assert len(checksums) == 1
    fingerprints = {LatentStore.open(tmp_path / n).fingerprint for n in ("b.h5", "c.h5")}
    assert len(fingerprints) == 1


def test_readers_can_be_sent_to_new_processes(source):
    """Catches a source that only forked workers can use (macOS, Windows, Python 3.14 spawn)."""
    batches = PictureBatches(open_source(source), 32, "adm", [np.array([3, 1])])
    batches[0]
    pixels, problems = pickle.loads(pickle.dumps(batches))[0]
    assert torch.equal(pixels, batches[0][0])
    assert problems == ["", ""]


def test_a_torn_batch_is_encoded_again_as_a_whole(source, out):
    """Catches a resume whose batches hold other images than an unbroken run's."""
    whole = run(settings_for(source, out, vae="patch-pca"))[0].data["checksum"]
    with Rows(out, writable=True) as file:
        file.set_attrs(complete=False)
        other = np.ones((1, *file.shape("latents")[1:]), np.float16)
        file.write([4], latents=other)
        file.write([5], latents=other, status=MISSING)
    result, events = run(settings_for(source, out, vae="patch-pca"))
    assert result.data["checksum"] == whole
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done[:2] == [9, 10]
    assert any("going on with" in text and "9 of 10" in text for text in texts(events))


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)


def kill_once(command, out, moment):
    """Run `command` and kill -9 it once `moment` rows are written (-1: while OUT is made)."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if moment < 0:
        hidden = out.with_name(f".{out.name}.creating")
        wait_for(lambda: hidden.exists() or out.exists(), process)
    else:
        wait_for(out.exists, process)
        file = Rows(out)
        wait_for(lambda: np.count_nonzero(file.array("written")) >= moment, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_kills(tmp_path, moments):
    # Batches of two: many writes, so that there are many moments between them.
    source = make_images(tmp_path / "images", num=300, side=33)
    shutil.copy(__file__, source / "cat" / "broken.png")
    options = ["--vae", "patch-pca", "--batch-size", "2", "--workers", "1", "--device", "cpu"]
    unbroken, out = tmp_path / "unbroken.h5", tmp_path / "out.h5"
    settings = dict(vae="patch-pca", batch_size=2, workers=1)
    expected = run(settings_for(source, unbroken, **settings))[0].data
    command = [sys.executable, "-m", "sitcli", "encode-latents", str(source), str(out), *options]
    for moment in moments:
        kill_once(command, out, moment)
        if moment >= 0:
            written = np.count_nonzero(Rows(out).written)
            assert moment <= written < 301
    result, events = run(settings_for(source, out, **settings))
    assert any("going on with" in text for text in texts(events))
    assert result.data["checksum"] == expected["checksum"]
    assert LatentStore.open(out).checksum() == expected["checksum"]
    assert [b["name"] for b in result.data["broken"]] == ["cat/broken.png"]
    leftovers = {path.name for path in tmp_path.iterdir()} - {"images"}
    assert leftovers == {"unbroken.h5", "out.h5"}


def test_killed_once_and_the_same_command_again(tmp_path):
    """Catches a store that kill -9 breaks, or that ends up different from an unbroken one."""
    check_kills(tmp_path, [random.randrange(1, 150)])


@pytest.mark.slow
def test_killed_at_five_random_moments(tmp_path):
    """Catches what one kill leaves for the next, and a kill while the file is laid out."""
    check_kills(tmp_path, [-1, *sorted(random.sample(range(220), 4))])


def test_ctrl_c_says_how_to_go_on(source, out):
    """Catches a traceback, a wrong exit code, or lost work on Ctrl-C."""
    stage = encode(settings_for(source, out))
    while not (isinstance(event := next(stage), Progress) and event.done == 4):
        pass
    with pytest.raises(Interrupted) as failure:
        stage.throw(KeyboardInterrupt())
    assert failure.value.exit_code == 130
    assert "same command" in failure.value.hint
    with pytest.raises(SitError, match="not complete: 4 of 10"):
        LatentStore.open(out)
    _, events = run(settings_for(source, out))
    assert next(event.done for event in events if isinstance(event, Progress)) == 4


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
    """Catches two kinds of latents in one store, and an OUT that is spoilt by the attempt."""
    asked = dict(vae="patch-pca", image_size=32)
    run(settings_for(source, out, **asked))
    Rows(out).set_attrs(complete=complete)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=message) as failure:
        run(settings_for(source, out, **(asked | change)))
    assert "--overwrite" in failure.value.hint
    assert out.read_bytes() == before
    result, _ = run(settings_for(source, out, overwrite=True, **(asked | change)))
    assert result.data["images"] == 10
    assert Rows(out).attrs["complete"]


def test_overwrite_goes_on_with_the_same_thing(source, out):
    """Catches --overwrite that throws away finished work of the very same command."""
    run(settings_for(source, out))
    inode = out.stat().st_ino
    _, events = run(settings_for(source, out, overwrite=True))
    assert any("complete already" in text for text in texts(events))
    assert out.stat().st_ino == inode


@pytest.mark.parametrize("complete", [True, False])
def test_a_changed_source_is_refused(source, out, complete):
    """Catches rows of the old and the new images mixed in one store."""
    run(settings_for(source, out))
    Rows(out).set_attrs(complete=complete)
    before = out.read_bytes()
    Image.new("RGB", (40, 40)).save(source / "cat" / "new.png")
    with pytest.raises(SitError, match=r"with other images .* 10 then, 11 now"):
        run(settings_for(source, out))
    assert out.read_bytes() == before
    assert run(settings_for(source, out, overwrite=True))[0].data["images"] == 11


def test_a_moved_source_is_the_same_source(source, out, tmp_path):
    """Catches a store that cannot be completed once its images were moved."""
    run(settings_for(source, out))
    Rows(out).set_attrs(complete=False)
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(SitError, match="images does not exist"):
        run(settings_for(source, out))
    run(settings_for(tmp_path / "elsewhere", out))
    assert LatentStore.open(out).source == str(tmp_path / "elsewhere")


def test_a_complete_store_needs_neither_source_nor_autoencoder(source, out):
    """Catches a repeated command that does work, or fails once the images are deleted."""
    expected = run(settings_for(source, out, vae="patch-pca"))[0].data["checksum"]
    spec = LatentStore.open(out).autoencoder
    Rows(out).set_attrs(autoencoder=spec | {"hash": "0" * 64})
    shutil.rmtree(source)
    result, events = run(settings_for(source, out, vae="patch-pca"))
    assert (texts(events), result.data["checksum"]) == ([f"{out} is complete already"], expected)
    Rows(out).set_attrs(complete=False)
    with pytest.raises(SitError):
        run(settings_for(source, out, vae="patch-pca"))


def test_another_batch_size_keeps_the_stores(source, out):
    """Catches a resume whose batches are cut otherwise than before."""
    run(settings_for(source, out))
    Rows(out).set_attrs(complete=False)
    _, events = run(settings_for(source, out, batch_size=3))
    assert any("begun with --batch-size 4, which is kept" in text for text in texts(events))


def test_the_autoencoder_of_another_store(source, out, tmp_path):
    """Catches a patch-pca fitted anew on held-out images, which no model of the first could read,
    and a resumed store that cannot find its basis."""
    run(settings_for(source, out, vae="patch-pca", pca_channels=6, image_size=32))
    held_out = make_images(tmp_path / "held-out", num=6, side=36)
    stage = encode(settings_for(held_out, tmp_path / "other.h5", vae=str(out), batch_size=2))
    for event in stage:
        if getattr(event, "done", 0) >= 2:
            break
    stage.close()
    result, _ = run(settings_for(held_out, tmp_path / "other.h5", vae=str(out), batch_size=2))
    assert result.data["images"] == 6
    first, other = LatentStore.open(out), LatentStore.open(tmp_path / "other.h5")
    assert (other.autoencoder["hash"], other.image_size) == (first.autoencoder["hash"], 32)
    assert np.array_equal(other.autoencoder_arrays["basis"], first.autoencoder_arrays["basis"])
    with pytest.raises(UsageError, match="was made with --vae"):
        run(settings_for(held_out, tmp_path / "other.h5", vae="patch-pca", image_size=32))
    with pytest.raises(UsageError, match="--pca-channels means nothing to --vae"):
        run(settings_for(held_out, tmp_path / "third.h5", vae=str(out), pca_channels=3))


def test_two_encoders_on_one_file(source, out):
    """Catches two processes that write the same rows."""
    first = encode(settings_for(source, out))
    next(first)
    with pytest.raises(SitError, match="another process is writing"):
        run(settings_for(source, out))
    first.close()
    run(settings_for(source, out))


def test_rows_that_come_back_different_are_encoded_again(source, out):
    """Catches `complete` on a store whose disk lost something."""
    stage = encode(settings_for(source, out))
    while not (isinstance(event := next(stage), Progress) and event.done == 10):
        pass
    with Rows(out, writable=True) as file:
        file.write([6], latents_flipped=np.ones((1, 3, 32, 32), np.float16))
    with pytest.raises(SitError, match=r"1 rows of .* are not what was written"):
        list(stage)
    assert not Rows(out).attrs["complete"]
    assert Rows(out).written.tolist() == [1, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    healed = run(settings_for(source, out))[0].data["checksum"]
    assert healed == run(settings_for(source, out.with_name("b.h5")))[0].data["checksum"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(vae="patch-pca", image_size=30), "--image-size 30: patch-pca needs a multiple of 4"),
        (dict(vae="patch-pca", pca_channels=49), "only 48 components"),
        (dict(vae="no/such/thing.pth"), "no autoencoder 'no/such/thing.pth'"),
    ],
)
def test_impossible_settings_write_nothing(source, out, changes, message):
    """Catches a half-made store for a command that cannot work."""
    with pytest.raises(UsageError, match=message):
        run(settings_for(source, out, **changes))
    assert [path.name for path in out.parent.iterdir()] == ["images"]


def test_a_full_disk_is_found_before_the_work(source, tmp_path):
    """Catches a disk that fills up after hours, and a torso left on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=150000", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(SitError, match=r"no room for .*out.h5: it needs") as failure:
            run(settings_for(source, disk / "out.h5", image_size=64))
        assert "free some space" in failure.value.hint
        assert list(disk.iterdir()) == []
        assert run(settings_for(source, disk / "out.h5", image_size=16))[0].data["images"] == 10
    finally:
        subprocess.run(["umount", disk], check=True)


def test_dry_run_tells_and_touches_nothing(source, out):
    """Catches a plan that differs from what is then done, or that leaves files."""
    settings = settings_for(source, out, vae="patch-pca", image_size=64)
    planned = plan(settings)
    assert [path.name for path in out.parent.iterdir()] == ["images"]
    assert (planned.data["images"], planned.data["num_classes"]) == (10, 2)
    done, _ = run(settings)
    assert list(planned.data["row_shape"]) == done.data["row_shape"] == [12, 16, 16]
    assert 0 < done.data["bytes"] - planned.data["bytes"] < 30_000
    assert plan(settings).summary["state"] == "10 of 10 images encoded"
    assert plan(settings_for(source, out.with_name("x.h5"), vae="a/b")).data["bytes"] is None
    with pytest.raises(UsageError, match="--image-size 64, not 32"):
        plan(settings_for(source, out, vae="patch-pca"))
    with pytest.raises(UsageError, match="multiple of 8"):
        plan(settings_for(source, out.with_name("x.h5"), vae="stabilityai/sd-vae-ft-ema",
                          image_size=100))  # fmt: skip


def save_tiny_vae(folder, seed):
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def test_a_posterior_is_stored_as_mean_and_std(source, out, tmp_path):
    """Catches log-variances stored for stds, a wrong scaling, and other weights on resume."""
    vae = save_tiny_vae(tmp_path / "vae", 0)
    settings = dict(vae=vae, image_size=32, precision="fp32")
    expected = run(settings_for(source, out, **settings))[0].data["checksum"]
    store = LatentStore.open(out)
    assert (store.kind, store.latent_shape, store.scaling) == ("moments", (2, 16, 16), 0.18215)
    autoencoder = from_spec(store.autoencoder, {}, device=torch.device("cpu"), dtype=torch.float32)
    with Image.open(source / store.image_paths()[7]) as image:
        pixels = torch.from_numpy(to_square(image, 32, "adm")).permute(2, 0, 1)[None] / 127.5 - 1
    mean, std = autoencoder.encode(pixels).chunk(2, dim=1)
    noise = torch.randn(1, 2, 16, 16)
    drawn = store.batch([7], noise=noise)
    torch.testing.assert_close(drawn, (mean + std * noise) * 0.18215, atol=2e-3, rtol=2e-3)

    Rows(out).set_attrs(complete=False)
    with Rows(out, writable=True) as file:
        file.write([2], status=MISSING)
    moved = Path(vae).rename(tmp_path / "moved")
    again = run(settings_for(source, out, **(settings | {"vae": str(moved)})))[0]
    assert again.data["checksum"] == expected
    Rows(out).set_attrs(complete=False)
    other = save_tiny_vae(tmp_path / "other", 1)
    with pytest.raises(SitError, match="other weights"):
        run(settings_for(source, out, **(settings | {"vae": other})))


@pytest.mark.skipif(not WEIGHTS.exists(), reason="TAEF2's weights are not in ../shared/weights")
def test_taef2_latents_decode_to_the_images(tmp_path):
    """Catches a real autoencoder fed the wrong range, colour order or scaling."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    (tmp_path / "images").mkdir()
    coarse.resize((64, 64), Image.BICUBIC).save(tmp_path / "images" / "a.png")
    settings = settings_for(
        tmp_path / "images", tmp_path / "a.h5", vae=str(WEIGHTS), image_size=64, precision="fp32"
    )
    run(settings)
    store = LatentStore.open(tmp_path / "a.h5")
    autoencoder = load_autoencoder(str(WEIGHTS), device=torch.device("cpu"), dtype=torch.float32)
    decoded = autoencoder.decode(store.batch([0]) / store.scaling)[0].permute(1, 2, 0)
    with Image.open(tmp_path / "images" / "a.png") as image:
        expected = np.array(image) / 127.5 - 1
    error = np.square(decoded.numpy() - expected).mean()
    assert 10 * np.log10(4 / error) > 22  # dB


def test_the_lock_is_of_this_toolkit(source, out):
    """Catches an encoder that does not ask for the lock other writers hold."""
    with locks.lock(out), pytest.raises(SitError, match="another process"):
        run(settings_for(source, out))
