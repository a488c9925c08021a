"""`sit encode-latents` on small real images, from the files to the finished store."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sitcli.autoencoders.load import from_spec, load_autoencoder
from sitcli.commands.encode.stage import encode
from sitcli.errors import SitError, UsageError
from sitcli.events import Progress
from sitcli.images.decode import to_square
from sitcli.images.sets import batches, open_images
from sitcli.latents.layout import encode_command
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import LatentStore
from sitcli.storage import locks
from sitcli.storage.rows import MISSING, Rows
from tests.commands.encode.pictures import encoded, settings_for, texts
from tests.images.archives import samples_of, write_parquet, write_shard
from tests.tiny import SHARED

WEIGHTS = SHARED / "weights"


def test_latents_are_the_images_and_their_mirror_images(source, out):
    """Catches: shuffled rows, wrong labels, wrong value range, and flips along the wrong axis."""
    result, events = encoded(settings_for(source, out, image_size=40, crop="none"))
    # 7 of 10 are not square.
    assert result.data["images"] == 4
    encoded(settings_for(source, out, image_size=40, crop="resize", overwrite=True))
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
    """Catches: provenance or statistics that are left at their placeholders."""
    result, _ = encoded(settings_for(source, out))
    store = LatentStore.open(out)
    assert (store.image_size, store.crop, store.kind) == (32, "adm", "latents")
    assert store.source == str(source)
    assert store.attrs["checksum"] == store.checksum() == result.data["checksum"]
    everything = torch.cat([store.batch(range(10), flip=np.full(10, f)) for f in (False, True)])
    np.testing.assert_allclose(store.mean, everything.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(store.std, everything.std((0, 2, 3)), rtol=1e-3)
    assert (result.path, result.data["bytes"]) == (out, out.stat().st_size)
    assert "--latents" in result.next  # OUT is not below the current folder


def test_normalize_channels_standardises_what_training_reads(source, out, tmp_path):
    """Catches: statistics of other latents than training draws, a shift that decoding forgets, and
    a store begun by a killed command that ends up otherwise."""
    options = dict(vae="patch-pca", image_size=32, pca_channels=5, normalize="channels")
    encoded(settings_for(source, out, **options))
    store = LatentStore.open(out)
    everything = torch.cat([store.batch(range(10), flip=np.full(10, f)) for f in (False, True)])
    std, mean = torch.std_mean(everything.double(), (0, 2, 3), correction=0)
    np.testing.assert_allclose(mean, np.zeros(5), atol=1e-5)  # sums of float32 squares: 2^-24 each
    np.testing.assert_allclose(std, np.ones(5), rtol=1e-5)
    np.testing.assert_allclose(store.std, np.ones(5), rtol=1e-12)
    plain = tmp_path / "plain.h5"
    encoded(settings_for(source, plain, **options | {"normalize": "autoencoder"}))
    plain = LatentStore.open(plain)
    assert (plain.scaling, plain.attrs["format_version"]) == (Scaling(1.0), 1)
    assert store.attrs["format_version"] == 2
    np.testing.assert_allclose(
        store.scaling.undo(store.batch([0, 7])), plain.batch([0, 7]), rtol=1e-5, atol=1e-5
    )
    assert "--normalize channels" in encode_command(store.attrs, out)
    with pytest.raises(UsageError, match="--normalize channels, not autoencoder"):
        encoded(settings_for(source, out, **options | {"normalize": "autoencoder"}))
    before = out.read_bytes()
    with Rows(out, writable=True) as file:  # as a killed command leaves it, before the statistics
        file.write([3], status=MISSING)
        file.set_attrs(complete=False, scaling=[1.0] * 5, shift=[0.0] * 5)
    encoded(settings_for(source, out, **options))
    assert out.read_bytes() == before


def test_workers_and_archives_change_nothing(source, out, tmp_path):
    """Catches: results that depend on arrival order or on how the source is packed."""
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(source, "images")
    checksums = {
        encoded(settings)[0].data["checksum"]
        for settings in (
            settings_for(source, out),
            settings_for(source, tmp_path / "b.h5", workers=2),
            settings_for(tmp_path / "images.tar", tmp_path / "c.h5", workers=1),
        )
    }
    assert len(checksums) == 1
    fingerprints = {LatentStore.open(tmp_path / n).fingerprint for n in ("b.h5", "c.h5")}
    assert len(fingerprints) == 1


@pytest.mark.parametrize("form", ["wds", "hf"])
def test_shards_interrupted_go_on_exactly(out, tmp_path, form):
    """Catches: rows of the wrong shard after an interruption, or with several readers; a broken
    image of a shard that stops the work or is not named."""
    broken = b"no image"
    for shard in range(3):
        numbers = range(7 * shard, 7 * shard + 7)
        samples = samples_of(numbers)
        if shard == 1:
            samples["000010"]["png"] = broken
        write_shard(tmp_path / "wds" / f"{shard}.tar", samples)
        images = [{"bytes": parts["png"], "path": None} for parts in samples.values()]
        write_parquet(tmp_path / "hf" / f"{shard}.parquet", numbers, images=images)
    source = tmp_path / form
    whole, _ = encoded(settings_for(source, tmp_path / "whole.h5", image_size=4, workers=2))
    for _ in range(2):
        stage = encode(settings_for(source, out, image_size=4))
        done = next(event.done for event in stage if isinstance(event, Progress))
        while getattr(next(stage), "done", 0) <= done:
            pass
        stage.close()
    result, events = encoded(settings_for(source, out, image_size=4, workers=1))
    assert any("going on with" in text and ": 8 of 21" in text for text in texts(events))
    assert result.data["checksum"] == whole.data["checksum"]
    store = LatentStore.open(out)
    numbers = [i for i in range(21) if i != 10]
    assert store.labels.tolist() == [i % 3 for i in numbers]
    grey = (store.batch(range(20))[:, 0, 0, 0] + 1) * 127.5
    # float16 has 11 bits: values below 1 are off by at most 2^-12, and grey by 127.5 / 4096.
    np.testing.assert_allclose(grey, numbers, atol=127.5 / 4096)
    assert [name for name, _ in store.broken()] == [
        "1.tar/000010.png" if form == "wds" else "1.parquet/3"
    ]
    _, events = encoded(settings_for(source, out, image_size=4))
    assert texts(events) == [f"{out} is complete already"]
    # sit evaluate reads the pictures behind the store.
    pictures = next(batches(open_images(out), range(20), 20))
    assert pictures[:, 0, 0, 0].tolist() == numbers


def test_two_encoders_on_one_file(source, out):
    """Catches: two processes that write the same rows."""
    first = encode(settings_for(source, out))
    next(first)
    with pytest.raises(SitError, match="another process is writing"):
        encoded(settings_for(source, out))
    first.close()
    encoded(settings_for(source, out))


def save_tiny_vae(folder, seed):
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def test_a_posterior_is_stored_as_mean_and_std(source, out, tmp_path):
    """Catches: log-variances stored for stds, a wrong scaling, and other weights on resume."""
    vae = save_tiny_vae(tmp_path / "vae", 0)
    settings = dict(vae=vae, image_size=32, precision="fp32")
    expected = encoded(settings_for(source, out, **settings))[0].data["checksum"]
    store = LatentStore.open(out)
    assert (store.kind, store.latent_shape, store.scaling) == (
        "moments", (2, 16, 16), Scaling(0.18215),
    )  # fmt: skip
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
    again = encoded(settings_for(source, out, **(settings | {"vae": str(moved)})))[0]
    assert again.data["checksum"] == expected
    Rows(out).set_attrs(complete=False)
    other = save_tiny_vae(tmp_path / "other", 1)
    with pytest.raises(SitError, match="other weights"):
        encoded(settings_for(source, out, **(settings | {"vae": other})))


@pytest.mark.skipif(not WEIGHTS.exists(), reason="TAEF2's weights are not in ../shared/weights")
def test_taef2_latents_decode_to_the_images(tmp_path):
    """Catches: a real autoencoder fed the wrong range, colour order or scaling."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    (tmp_path / "images").mkdir()
    coarse.resize((64, 64), Image.BICUBIC).save(tmp_path / "images" / "a.png")
    settings = settings_for(
        tmp_path / "images", tmp_path / "a.h5", vae=str(WEIGHTS), image_size=64, precision="fp32"
    )
    encoded(settings)
    store = LatentStore.open(tmp_path / "a.h5")
    autoencoder = load_autoencoder(str(WEIGHTS), device=torch.device("cpu"), dtype=torch.float32)
    decoded = autoencoder.decode(store.scaling.undo(store.batch([0])))[0].permute(1, 2, 0)
    with Image.open(tmp_path / "images" / "a.png") as image:
        expected = np.array(image) / 127.5 - 1
    error = np.square(decoded.numpy() - expected).mean()
    assert 10 * np.log10(4 / error) > 22  # dB


def test_the_lock_is_of_this_toolkit(source, out):
    """Catches: an encoder that does not ask for the lock other writers hold."""
    with locks.lock(out), pytest.raises(SitError, match="another process"):
        encoded(settings_for(source, out))
