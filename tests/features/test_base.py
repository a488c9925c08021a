"""What features are called."""

from sitcli.features.base import INCEPTION_HASH, Features
from sitcli.features.extractors import choose_features


def test_only_the_official_weights_give_figures_called_fid():
    """Catches: a figure of other weights or of pixels that is called FID."""
    official = Features(name="inception", path=None, hash=INCEPTION_HASH + "0" * 56)
    other = Features(name="inception", path=None, hash="12345678" + "0" * 56)
    assert [official.label(m) for m in ("FID", "KID", "IS")] == ["FID", "KID", "IS"]
    assert other.label("FID") == "FD[inception:12345678]"
    assert other.label("precision") == "precision[inception:12345678]"
    assert choose_features("pixels", None).label("KID") == "KD[pixels]"
