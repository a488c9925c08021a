"""What `sit train` is asked to do, checked before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.train import job
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.latents.layout import row_checksums
from sitcli.latents.store import LatentStore
from sitcli.machine.world import World
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.storage.files import hash_json
from sitcli.storage.rows import Rows
from tests.tiny import finish, pictures, train_settings, write_meta, write_samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="SiT-S/3"), "patch 3 does not divide"),
        (dict(model="SiT-Q/2"), "no model is called"),
        (dict(model="DiT-S/2", interpolant="gvp"), "--interpolant is an option of SiT"),
        (dict(betas="cosine"), "--betas is an option of DiT"),
        (dict(posterior="mode"), "--posterior has no effect"),
        (dict(variance="fixed-small"), "--variance is an option of DiT"),
        (dict(batch_size=9, accumulate=2), "not divisible"),
        (dict(heads=3), "heads do not divide"),
    ],
)
def test_bad_options_touch_nothing(store: Path, tmp_path: Path, options, message) -> None:
    """Catches: a bad option found only after files were written."""
    with pytest.raises(UsageError, match=message):
        finish(train(train_settings(store, tmp_path / "run", steps=2, **options)))
    assert not (tmp_path / "run").exists()


def test_a_torch_that_loses_gradients_compiles_no_stage_3(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: --zero 3 whose compiled blocks never learn, without a word."""
    monkeypatch.setattr(job, "compiles_stage_3", lambda device: False)
    monkeypatch.setattr(job, "resolve_compile", lambda name, device, flops: name != "off")
    world = World(0, 1)

    def compiled(**options) -> bool:
        return job.prepare(train_settings(store, tmp_path / "run", **options), world).compiled

    with pytest.raises(UsageError, match="get no gradients"):
        compiled(zero="3", compile="on")
    assert not compiled(zero="3", compile="auto")
    assert compiled(zero="1", compile="on")


def test_a_sample_set_is_no_place_for_a_run(store: Path, tmp_path: Path) -> None:
    """Catches: a folder that is both, and that no command reads any more."""
    write_samples(tmp_path / "set", pictures(2)[0])
    with pytest.raises(UsageError, match="is a sample set"):
        finish(train(train_settings(store, tmp_path / "set", steps=2)))


def rewrite(store: Path, *, factor: float = 1.0, **attrs) -> None:
    """Encode the store again, as it were: with other values, or other facts about the source."""
    with Rows(store, writable=True) as file:
        arrays = [
            (factor * file.array(n)).astype(np.float16) for n in ("latents", "latents_flipped")
        ]
        file.write(
            range(file.num_rows),
            latents=arrays[0],
            latents_flipped=arrays[1],
            crc32=row_checksums(*arrays),
        )
        file.set_attrs(checksum=LatentStore(file).checksum(), **attrs)


def forget_checksum(run: Path) -> None:
    """Make the newest checkpoint one of version 0.7, which kept no checksum of the store."""
    file = RunDir(run).newest() / "meta.json"
    meta = json.loads(file.read_text())
    del meta["latents"]["checksum"]
    file.write_text(json.dumps(meta))


def test_a_changed_store_of_the_same_name_is_refused(store: Path, tmp_path: Path) -> None:
    """Catches: a run that goes on with other latents, as their names and sizes are the same."""
    run = tmp_path / "run"
    finish(train(train_settings(store, run, steps=2)))
    assert open_checkpoint(run).latents["checksum"] == LatentStore.open(store).written_checksum
    rewrite(store)
    finish(train(train_settings(store, run, steps=3)))  # the same again
    rewrite(store, factor=0.5)
    with pytest.raises(UsageError, match="holds now: those are with other values") as failure:
        finish(train(train_settings(store, run, steps=4)))
    assert failure.value.hint.startswith("restore them, or begin another run from its weights: ")
    assert RunDir(run).steps()[-1] == 3


def test_a_run_without_a_checksum_goes_on_and_gains_it(store: Path, tmp_path: Path) -> None:
    """Catches: runs of 0.7 that cannot go on, or never learn what they are trained on."""
    run = tmp_path / "run"
    finish(train(train_settings(store, run, steps=2)))
    forget_checksum(run)
    # Version 0.8 encodes the same images again: the fingerprint is of another kind.
    opened = LatentStore.open(store)
    identity = [opened.attrs["source_fingerprint"]]
    identity += [opened.autoencoder["hash"], opened.image_size, opened.crop, opened.has_flips]
    rewrite(store, fingerprint=hash_json([*identity, "c"]), source_content="c")
    meta = RunDir(run).newest() / "meta.json"
    facts = json.loads(meta.read_text())
    facts["latents"]["fingerprint"] = hash_json(identity)
    write_meta(meta, facts)
    finish(train(train_settings(store, run, steps=3)))
    latents = open_checkpoint(run).latents
    assert latents["fingerprint"] == LatentStore.open(store).fingerprint
    assert latents["checksum"] == LatentStore.open(store).written_checksum
    rewrite(store, factor=2.0)
    with pytest.raises(UsageError, match="with other values"):
        finish(train(train_settings(store, run, steps=4)))


def test_other_images_are_refused(store: Path, tmp_path: Path) -> None:
    """Catches: pictures of the same names and sizes taken for the run's."""
    run = tmp_path / "run"
    rewrite(store, fingerprint="1" * 64, source_content="c")
    finish(train(train_settings(store, run, steps=2)))
    rewrite(store, fingerprint="2" * 64, source_content="d")
    with pytest.raises(UsageError, match="those are of other images"):
        finish(train(train_settings(store, run, steps=3)))


def test_a_run_of_0_7_is_found_by_its_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: training begun anew because the store was encoded again by a later version."""
    monkeypatch.chdir(tmp_path)
    first = LatentStore.open(store)
    identity = [first.attrs["source_fingerprint"], first.autoencoder["hash"]]
    identity += [first.image_size, first.crop, first.has_flips]
    rewrite(store, fingerprint=hash_json(identity))
    made = job.prepare(train_settings(store, None), World(0, 1)).run.path
    rewrite(store, fingerprint="3" * 64, source_content="c")
    other = job.prepare(train_settings(store, None), World(0, 1)).run.path
    assert made != other
    made.mkdir(parents=True)
    assert job.prepare(train_settings(store, None), World(0, 1)).run.path == made
    other.mkdir()
    assert job.prepare(train_settings(store, None), World(0, 1)).run.path == other


def test_a_damaged_store_is_found_at_the_beginning(store: Path, tmp_path: Path) -> None:
    """Catches: days of training on rows that a disk has lost."""
    with Rows(store, writable=True) as file:
        file.write([3], latents=np.zeros((1, 3, 8, 8), np.float16))
    with pytest.raises(SitError, match="row 3 is not what was written"):
        finish(train(train_settings(store, tmp_path / "run", steps=2)))
    assert not (tmp_path / "run").exists()
