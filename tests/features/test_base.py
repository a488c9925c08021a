"""What features are called."""

from sitcli.features.base import Features
from sitcli.features.extractors import KINDS, choose_features
from sitcli.features.inception import INCEPTION_HASH


def test_only_the_official_weights_give_figures_called_fid():
    """Catches: a figure of other weights or of pixels that is called FID."""
    facts = KINDS["inception"].facts
    official = Features(name="inception", path=None, hash=INCEPTION_HASH + "0" * 56, **facts)
    other = Features(name="inception", path=None, hash="12345678" + "0" * 56, **facts)
    assert [official.label(m) for m in ("FID", "KID", "IS")] == ["FID", "KID", "IS"]
    assert other.label("FID") == "FD[inception:12345678]"
    assert other.label("precision") == "precision[inception:12345678]"
    assert choose_features("pixels").label("KID") == "KD[pixels]"
