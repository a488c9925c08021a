"""Features of an encoder, from the images to a training that aligns with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sitcli.commands.encode.stage import encode
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.tools import InspectSettings
from sitcli.storage.rows import Rows
from tests.tiny import finish, pictures, train_settings, write_folder
from tests.whole.beyond import drawn

# --- features ------------------------------------------------------------------------------------


class Halves(nn.Module):
    """A map of 2 x 2 averages, and their squares."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 255
        means = nn.functional.adaptive_avg_pool2d(x, (2, 2))
        return torch.cat([means, means * means], dim=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[Path, Path]:
    """21 pictures in three classes, one broken, and an encoder's file."""
    folder = tmp_path_factory.mktemp("features")
    drawn_, labels = pictures(21)
    for label in range(3):
        write_folder(folder / "images" / f"c{label}", drawn_[labels == label])
    (folder / "images" / "c1" / "003.png").write_bytes(b"no picture")
    torch.jit.save(torch.jit.script(Halves()), str(folder / "halves.pt"))
    return folder / "images", folder / "halves.pt"


def encoding(images: tuple[Path, Path], out: Path, **changes: Any) -> EncodeSettings:
    source, encoder = images
    options = dict(source=source, out=out, vae="pixels", image_size=8, batch_size=5, workers=0)
    return EncodeSettings(**options | dict(align_features=str(encoder)) | changes)


def test_features_are_of_their_images(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Catches: features of other rows, of the image where the mirrored one is meant, or in a broken
    image's row."""
    result = finish(encode(encoding(images, tmp_path / "a.h5")))
    assert result.data["align"]["shape"] == [6, 2, 2]
    opened = LatentStore.open(tmp_path / "a.h5")
    assert (opened.align_width, opened.num_items) == (6, 20)
    items = np.array([0, 7, 19, 3])
    flip = np.array([False, True, False, True])
    pixels = (opened.batch(items, flip=flip) + 1) * 127.5
    expected = Halves()(pixels.round().to(torch.uint8))
    found = torch.from_numpy(opened.features(items, flip=flip)).float()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    assert finish(inspect(InspectSettings(path=tmp_path / "a.h5", verify=True)))
    joined = JoinedStores([opened, opened])
    again = joined.features(np.array([20, 7]), flip=np.array([False, True]))
    np.testing.assert_array_equal(again, opened.features(np.array([0, 7]), flip=flip[:2]))


def test_interrupted_features_go_on(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Catches: rows flagged before their features are there."""
    finish(encode(encoding(images, tmp_path / "whole.h5")))
    cut = encode(encoding(images, tmp_path / "cut.h5"))
    for _ in range(4):
        next(cut)
    cut.close()
    assert not Rows(tmp_path / "cut.h5").attrs["complete"]
    finish(encode(encoding(images, tmp_path / "cut.h5")))
    whole, parts = Rows(tmp_path / "whole.h5"), Rows(tmp_path / "cut.h5")
    assert whole.names == parts.names
    for name in whole.names:
        np.testing.assert_array_equal(whole.array(name), parts.array(name), err_msg=name)


def test_damaged_features_are_found(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Catches: a store whose features have rotted, and that says it is whole."""
    finish(encode(encoding(images, tmp_path / "a.h5")))
    with Rows(tmp_path / "a.h5", writable=True) as file:
        row = np.array(file.array("features_flipped")[4:5])
        row[0, 0, 0, 0] += 1
        file.write([4], features_flipped=row)
    with pytest.raises(SitError, match=r"c0/004\.png"):
        finish(inspect(InspectSettings(path=tmp_path / "a.h5", verify=True)))


def test_repa_learns_the_features(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Catches: a projection that is not trained, or features of other images than the batch's."""
    finish(encode(encoding(images, tmp_path / "a.h5")))
    more = dict(repa="1,1", depth=2, steps=60, lr=3e-3, log_every=10, save_every=30)
    finish(train(train_settings(tmp_path / "a.h5", tmp_path / "run", **more)))
    curve = [entry["loss_repa"] for entry in RunDir(tmp_path / "run").read_metrics()]
    assert curve[-1] < 0.5 * curve[0]
    config = open_checkpoint(tmp_path / "run").config
    assert (config.align_block, config.align_width) == (1, 6)
    assert drawn(tmp_path / "run", tmp_path / "drawn").complete


def test_features_grow_with_their_images(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Catches: a grown store whose old rows have no features, or those of other rows."""
    names = sorted(images[0].rglob("*.png"))
    part = tmp_path / "part"
    for number, some in enumerate((names[::2], names[1::2])):
        for name in some:
            place = part / name.relative_to(images[0])
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, place)
        finish(encode(encoding((part, images[1]), tmp_path / "part.h5")))
        assert len(LatentStore.open(tmp_path / "part.h5").attrs.get("grown", [])) == number
    finish(encode(encoding(images, tmp_path / "whole.h5")))
    whole, grown = (LatentStore.open(tmp_path / name) for name in ("whole.h5", "part.h5"))
    number = {name: i for i, name in enumerate(grown.image_paths())}
    order = np.array([number[name] for name in whole.image_paths()])
    everything = np.arange(whole.num_items)
    assert len(order) == grown.num_items
    for flip in (np.zeros(len(order), bool), np.ones(len(order), bool)):
        np.testing.assert_array_equal(
            grown.features(order, flip=flip), whole.features(everything, flip=flip)
        )


def test_feature_refusals(images: tuple[Path, Path], tmp_path: Path, store: Path) -> None:
    """Catches: a hub asked in vain with a traceback, a vector taken for a map, a store without."""
    with pytest.raises(SitError, match="weights") as missing:
        finish(encode(encoding(images, tmp_path / "b.h5", align_features="dinov2",
                               align_weights=tmp_path / "none.pth")))  # fmt: skip
    assert "no such file" in missing.value.message
    with pytest.raises(UsageError, match="timm has no model"):
        finish(encode(encoding(images, tmp_path / "b.h5", align_features="timm:nothing")))
    with pytest.raises(UsageError, match="neither dinov2"):
        finish(encode(encoding(images, tmp_path / "b.h5", align_features="halvs.pt")))

    class Vector(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=(2, 3))

    torch.jit.save(torch.jit.script(Vector()), str(tmp_path / "vector.pt"))
    with pytest.raises(SitError, match="rows, columns"):
        finish(
            encode(encoding(images, tmp_path / "b.h5", align_features=str(tmp_path / "vector.pt")))
        )
    assert not (tmp_path / "b.h5").exists()
    finish(encode(encoding(images, tmp_path / "a.h5")))
    with pytest.raises(UsageError, match="--align-features"):
        finish(encode(encoding(images, tmp_path / "a.h5", align_features=None)))


def test_timm_features_need_their_weights(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Catches: prefix tokens taken for places, or a convolutional map turned round."""
    import timm

    for name, shape in (("vit_tiny_patch16_224", (192, 14, 14)), ("resnet10t", (512, 6, 6))):
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False)
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
        options = dict(align_features=f"timm:{name}", align_weights=tmp_path / f"{name}.pth")
        result = finish(encode(encoding(images, tmp_path / f"{name}.h5", flip=False, **options)))
        assert tuple(result.data["align"]["shape"]) == shape
