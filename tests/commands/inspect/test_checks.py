"""`sit inspect --verify`: damage that it must find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sitcli.errors import SitError
from sitcli.storage.tensors import read_tensors, write_tensors
from tests.commands.inspect.artefacts import (
    inspected,
    make_run,
    make_samples,
    make_store,
    overwrite,
)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: overwrite(p, "latents_flipped", 3, np.nan),
            "other latents than were written: 0/3.png; some latents are not fin",
        ),
        (
            lambda p: overwrite(p, "latents", 3, 0.5),
            "1 images have other latents than were written: 0/3.png",
        ),
        (lambda p: overwrite(p, "labels", 3, 7), "labels run from 0 to 7"),
        (lambda p: overwrite(p, "labels", 3, 1), "do not have the checksum"),
        (lambda p: overwrite(p, "autoencoder_basis", 0, 0), "basis does not have the hash"),
    ],
)
def test_verify_finds_damage(tmp_path, damage, message):
    """Catches: a check that reads the wrong rows, or compares a sum with itself."""
    make_store(tmp_path / "a.h5")
    damage(tmp_path / "a.h5")
    inspected(tmp_path / "a.h5")  # without --verify nothing is read
    with pytest.raises(SitError, match=message):
        inspected(tmp_path / "a.h5", verify=True)


def test_verify_finds_a_store_that_is_not_complete_but_says_so(tmp_path):
    """Catches: a store with `complete` set too early, as a kill would leave it."""
    make_store(tmp_path / "a.h5", encoded=9)
    with pytest.raises(SitError, match="marked complete, but 4 rows"):
        inspected(tmp_path / "a.h5", verify=True)


def test_verify_reads_every_weight_of_every_step(tmp_path):
    """Catches: a check of the newest step alone, or of model and not of ema."""
    directory = make_run(tmp_path / "run")
    ema = directory.step_path(10) / "ema.safetensors"
    sound = read_tensors(ema)
    broken = {k: v.clone() for k, v in sound.items()}
    broken["x_embedder.proj.bias"][0] = torch.inf
    write_tensors(ema, broken)
    with pytest.raises(SitError, match=r"step 10: ema.safetensors is not finite: x_embedder"):
        inspected(directory.path, verify=True)
    write_tensors(ema, {k: v for k, v in sound.items() if k != "pos_embed"})
    with pytest.raises(SitError, match="does not fit the network: pos_embed"):
        inspected(directory.step_path(10), verify=True)
    ema.write_bytes(ema.read_bytes()[:-50])
    with pytest.raises(SitError, match="cannot read"):
        inspected(directory.path, verify=True)
    (directory.step_path(20) / "meta.json").write_text('{"format": "sit-checkpoint"}')
    with pytest.raises(SitError, match="is damaged: no 'format_version'"):
        inspected(directory.path)


def test_verify_finds_damaged_samples(tmp_path):
    """Catches: latents that are not numbers, labels of no class, or a meta.json of another set
    passed."""
    make_samples(tmp_path / "set")
    overwrite(tmp_path / "set" / "samples.h5", "latents", 2, np.nan)
    with pytest.raises(SitError, match="latents are not finite"):
        inspected(tmp_path / "set", verify=True)
    overwrite(tmp_path / "set" / "samples.h5", "latents", 2, 0)
    (tmp_path / "set" / "meta.json").write_text("{}")
    with pytest.raises(SitError, match=r"meta.json differs"):
        inspected(tmp_path / "set", verify=True)
