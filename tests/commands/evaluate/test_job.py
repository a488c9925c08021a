"""What `sit evaluate` is asked to compare, checked before anything is measured."""

import pytest

from sitcli.commands.evaluate.stage import evaluate, plan
from sitcli.errors import SitError
from sitcli.settings.evaluate import EvaluateSettings
from tests.commands.evaluate.measuring import events_and_result, pixel_settings, pixels
from tests.tiny import write_samples


def test_what_cannot_be_compared_is_refused(pipeline):
    """Catches: figures from one image, of unequal sizes, or of more images than there are."""
    small = write_samples(pipeline / "samples/small", pixels(20, 1, side=4))
    one = write_samples(pipeline / "samples/one", pixels(1, 1))
    store = pipeline / "out.h5"
    cases = [
        (dict(samples=[one], reference=store), "1 image"),
        (dict(samples=[small], reference=store), "4x4"),
        (dict(samples=[store]), "latent store"),
        (dict(samples=[pipeline / "samples/a"], reference_num=25), "24 images"),
        (dict(samples=[pipeline / "samples/a"], isc=True), "--isc needs class probabilities"),
        (
            dict(samples=[pipeline / "samples/a"], sfid=True),
            "--sfid needs InceptionV3's mixed_6 map",
        ),
        (
            dict(samples=[pipeline / "samples/a"], features_weights=store),
            "--features-weights belongs to --features inception",
        ),
        (
            dict(samples=[pipeline / "samples/a"], dinov2_weights=store),
            "--dinov2-weights is for --fdd",
        ),
    ]
    for more, words in cases:
        with pytest.raises(SitError, match=words):
            events_and_result(evaluate(pixel_settings(**more)))


def test_a_wrong_path_is_not_reported_as_missing_weights(tmp_path):
    """Catches: a long hint on fetching InceptionV3 for a mistyped folder."""
    with pytest.raises(SitError, match="nope does not exist"):
        plan(EvaluateSettings(samples=[tmp_path / "nope"], fid=True, device="cpu"))


def test_a_plan_writes_nothing(pipeline):
    """Catches: a dry run that extracts or makes folders."""
    before = sorted(pipeline.rglob("*"))
    result = plan(pixel_settings(fid=True, reference_num=10))
    assert result.data["reference"]["num"] == 10
    assert result.data["out"][0].endswith("samples/a/metrics.json")
    assert sorted(pipeline.rglob("*")) == before


def test_without_samples_that_is_what_is_said(tmp_path, monkeypatch):
    """Catches: an error about Inception's weights where there is nothing to measure."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(SitError, match="no sample set"):
        events_and_result(evaluate(EvaluateSettings(device="cpu")))
