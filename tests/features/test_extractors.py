"""Extractors by name, and files that are none."""

import pytest
import torch

from sitcli.errors import SitError, UsageError
from sitcli.features.extractors import choose_features, load_extractor

CPU = torch.device("cpu")


def test_pixels_are_area_averages():
    """Catches: a resize that samples instead of averaging, and sizes of features."""
    extract = load_extractor(choose_features("pixels"), CPU).extract
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    features = extract(images.to(torch.uint8))["pool"]
    assert features.shape == (3, 768)
    expected = images[1, 2, 4:6, 10:12].double().mean() / 255
    assert features[1].reshape(3, 16, 16)[2, 2, 5] == pytest.approx(expected.item(), rel=1e-6)
    assert extract(torch.zeros(2, 3, 8, 12, dtype=torch.uint8))["pool"].shape == (2, 288)


def test_wrong_files_and_combinations_are_refused(tmp_path):
    """Catches: tracebacks for files that are not what the option says."""
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"no module" * 100)
    with pytest.raises(SitError, match="not a TorchScript module"):
        load_extractor(choose_features(str(junk)), CPU)
    with pytest.raises(SitError, match="InceptionV3's weights"):
        load_extractor(choose_features("inception", {"inception": junk}), CPU)
    torch.save({"fc.weight": torch.zeros(1)}, junk)
    with pytest.raises(SitError, match="InceptionV3's weights"):
        load_extractor(choose_features("inception", {"inception": junk}), CPU)
    with pytest.raises(UsageError):
        choose_features("resnet")
