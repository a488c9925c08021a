"""Images, a latent store and samples for the tests of `sit evaluate`."""

import pytest

from sitcli.commands.encode.stage import encode
from sitcli.settings.encode import EncodeSettings
from tests.commands.evaluate.measuring import events_and_result, pixels
from tests.tiny import write_folder, write_samples


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A class folder, its latent store and a sample set that names the store."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("cat", 1), ("dog", 2)):
        write_folder(tmp_path / "images" / name, pixels(12, seed))
    settings = EncodeSettings(
        source=tmp_path / "images",
        out=tmp_path / "out.h5",
        vae="pixels",
        image_size=8,
        device="cpu",
        workers=0,
    )
    events_and_result(encode(settings))
    write_samples(
        tmp_path / "samples" / "a",
        pixels(20, 3),
        store=str(tmp_path / "out.h5"),
        checkpoint="runs/a/step-0000010",
        mode="sde",
        solver="heun",
        wt="kl",
        cfg_scale=1.0,
        num=20,
    )
    return tmp_path
