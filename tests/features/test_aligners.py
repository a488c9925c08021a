"""Encoders of maps of features, by name or file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sitcli.errors import SitError, UsageError
from sitcli.features.aligners import load_aligner
from sitcli.storage.files import hash_file

CPU = torch.device("cpu")


class Quarters(nn.Module):
    """Means of four quarters of each colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), (2, 2))


class Vector(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def script(path: Path, module: nn.Module) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))
    return path


def test_a_module_of_the_users_gives_a_map(tmp_path: Path) -> None:
    """Catches: rows and columns of the map exchanged, or a store that does not know its encoder."""
    path = script(tmp_path / "quarters.pt", Quarters())
    aligner = load_aligner(str(path), None, image_size=8, device=CPU)
    assert aligner.spec == dict(
        name="quarters.pt", hash=hash_file(path), asked=str(path), shape=[3, 2, 2]
    )
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    found = aligner.encode(images)
    expected = images[:, :, :4, 4:].float().mean(dim=(2, 3))
    torch.testing.assert_close(found[:, :, 0, 1], expected)


def test_what_is_no_encoder_is_named(tmp_path: Path) -> None:
    """Catches: a vector taken for a map, a hub asked for a misspelt name, an option ignored."""
    path = script(tmp_path / "vector.pt", Vector())
    with pytest.raises(SitError, match="rows, columns"):
        load_aligner(str(path), None, image_size=8, device=CPU)
    with pytest.raises(UsageError, match="neither dinov2, timm:NAME, nor a file"):
        load_aligner(str(tmp_path / "none.pt"), None, image_size=8, device=CPU)
    with pytest.raises(UsageError, match="--align-weights has no effect with"):
        load_aligner(str(path), path, image_size=8, device=CPU)
    with pytest.raises(UsageError, match="timm has no model 'vit_huger'"):
        load_aligner("timm:vit_huger", None, image_size=8, device=CPU)
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(SitError, match="does not hold the weights of timm's resnet10t"):
        load_aligner("timm:resnet10t", tmp_path / "other.pth", image_size=8, device=CPU)
