"""A TorchScript module of the user's as an extractor."""

import pytest
import torch

from sitcli.errors import SitError
from sitcli.features.extractors import choose_features, load_extractor

CPU = torch.device("cpu")


class Mean(torch.nn.Module):
    """Features of a TorchScript user: colour means, or on request something that is not allowed."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> (B, 3), or (B, 3, 1, 1)."""
        means = images.float().mean(dim=(2, 3))
        return means[:, :, None, None] if self.wrong else means


def test_a_torchscript_module_is_an_extractor(tmp_path):
    """Catches: a change of layout or dtype before the user's module; and outputs of wrong form."""
    path = tmp_path / "mean.pt"
    torch.jit.save(torch.jit.script(Mean()), path)
    features = choose_features(str(path))
    extractor = load_extractor(features, CPU)
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    found = extractor.extract(images)["pool"]
    torch.testing.assert_close(found, images.float().mean(dim=(2, 3)))
    assert features.label("FID") == f"FD[mean.pt:{features.hash[:8]}]"
    assert extractor.logits is None
    torch.jit.save(torch.jit.script(Mean(wrong=True)), path)
    with pytest.raises(SitError, match="must return features"):
        load_extractor(choose_features(str(path)), CPU).extract(images)
