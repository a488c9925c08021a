"""A latent store that goes on, where not all options are typed again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sitcli.commands.encode.resume import unsaid_as_begun
from sitcli.commands.encode.stage import encode, plan
from sitcli.errors import UsageError
from sitcli.settings.encode import EncodeSettings
from sitcli.storage.rows import Rows
from tests.tiny import finish, pictures, write_folder

BEGUN = dict(vae="patch-pca", pca_patch=2, pca_channels=5, image_size=4, crop="resize", flip=False)
BEGUN["normalize"] = "channels"


@pytest.fixture
def begun(tmp_path) -> EncodeSettings:
    """The bare settings of a store that lacks an image."""
    source = write_folder(tmp_path / "images", pictures(12)[0])
    bare = EncodeSettings(source=source, out=tmp_path / "out.h5", device="cpu", workers=0)
    full = dict(source=source, out=bare.out, device="cpu", workers=0, **BEGUN)
    finish(encode(EncodeSettings(**full)))
    with Rows(bare.out, writable=True) as file:
        file.write([3], status=0)
        file.set_attrs(complete=False)
    return bare


def test_options_left_out_are_the_store_s(begun):
    """Catches: defaults compared with the store, of which nobody typed one."""
    filled = unsaid_as_begun(begun, {})
    assert {name: getattr(filled, name) for name in BEGUN} == BEGUN
    assert finish(encode(begun, {})).path == begun.out
    with Rows(begun.out) as file:
        assert file.attrs["complete"]


def test_what_was_said_is_compared(begun):
    """Catches: an option that is replaced by the store's without a word."""
    for options, message in (
        (dict(crop="adm"), "--crop resize, not adm"),
        (dict(image_size=8), "--image-size 4, not 8"),
        (dict(pca_channels=3), "--pca-channels 5, not 3"),
        (dict(vae="pixels"), "--vae patch-pca, not pixels"),
    ):
        with pytest.raises(UsageError, match=message):
            plan(replace(begun, **options), dict.fromkeys(options, "remove it"))
    over = replace(begun, overwrite=True)
    assert unsaid_as_begun(over, {"overwrite": ""}) is over
    assert unsaid_as_begun(begun, None) is begun
