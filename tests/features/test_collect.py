"""Features of many images: kept beside them, used again, and continued after an interruption."""

import json
import shutil

import pytest

from sitcli.commands.evaluate.stage import evaluate
from sitcli.errors import UsageError
from sitcli.events import Progress, Warn
from tests.commands.evaluate.measuring import events_and_result, first_done, pixel_settings, values


def test_nothing_is_extracted_twice(pipeline):
    """Catches: kept features that are not used, and the figures changing because of them."""
    _, first = events_and_result(evaluate(pixel_settings(fid=True, kid=True)))
    kept = list((pipeline / "out.stats").iterdir())
    assert sorted(path.suffix for path in kept) == [".features", ".npz"]
    shutil.rmtree(pipeline / "samples/a/stats")
    events, second = events_and_result(evaluate(pixel_settings(fid=True)))
    assert {event.total for event in events if isinstance(event, Progress)} == {20}
    assert values(second)["FD[pixels]"] == values(first)["FD[pixels]"]
    events, third = events_and_result(evaluate(pixel_settings(kid=True)))
    assert first_done(events) == 24
    assert values(third)["KD[pixels]"] == values(first)["KD[pixels]"]
    document = json.loads((pipeline / "samples/a/metrics.json").read_text())
    assert sorted(f["metric"] for f in document["figures"]) == ["FD[pixels]", "KD[pixels]"]


def test_an_interrupted_evaluation_goes_on_with_the_same_figures(pipeline, monkeypatch):
    """Catches: rows flagged before they are written, or written to the wrong place on resuming."""
    from sitcli.features import collect as extraction

    monkeypatch.setattr(extraction, "BLOCK", 4)
    _, expected = events_and_result(evaluate(pixel_settings(fid=True, kid=True)))
    shutil.rmtree(pipeline / "out.stats")
    shutil.rmtree(pipeline / "samples/a/stats")
    stage = evaluate(pixel_settings(fid=True, kid=True, batch_size=3))
    for event in stage:
        if isinstance(event, Progress) and event.done >= 15:
            break
    stage.close()
    events, result = events_and_result(evaluate(pixel_settings(fid=True, kid=True)))
    assert 0 < first_done(events) < 24
    assert values(result) == values(expected)


def test_damaged_leftovers_are_made_again(pipeline):
    """Catches: a half-written statistics or feature file that stops every later evaluation."""
    _, expected = events_and_result(evaluate(pixel_settings(fid=True, kid=True)))
    for path in [*(pipeline / "out.stats").iterdir(), pipeline / "samples/a/metrics.json"]:
        path.write_bytes(path.read_bytes()[:100])
    events, result = events_and_result(evaluate(pixel_settings(fid=True, kid=True)))
    assert any("made again" in event.text for event in events if isinstance(event, Warn))
    assert values(result) == values(expected)


def test_more_images_than_can_be_kept_give_the_same_distance(pipeline, monkeypatch):
    """Catches: the streaming path differing from the kept one, and a metric that needs features
    being tried without them."""
    from sitcli.features import collect as extraction

    _, expected = events_and_result(evaluate(pixel_settings()))
    shutil.rmtree(pipeline / "out.stats")
    monkeypatch.setattr(extraction, "KEEP_BYTES", 4 * 192 * 20)
    _, result = events_and_result(evaluate(pixel_settings()))
    kept = {"".join(path.suffixes[-3:]) for path in (pipeline / "out.stats").iterdir()}
    assert kept == {".npz", ".sums.0.npz"}
    assert values(result)["FD[pixels]"] == pytest.approx(values(expected)["FD[pixels]"], rel=1e-9)
    with pytest.raises(UsageError, match="at most 20 images"):
        events_and_result(evaluate(pixel_settings(kid=True)))


def test_sums_of_a_large_set_go_on_where_they_were(pipeline, monkeypatch):
    """Catches: chunks counted twice or lost when features are too many to keep and a run is cut."""
    from sitcli.features import collect as extraction

    _, expected = events_and_result(evaluate(pixel_settings()))
    shutil.rmtree(pipeline / "out.stats")
    monkeypatch.setattr(extraction, "KEEP_BYTES", 1)
    monkeypatch.setattr(extraction, "CHUNK", 5)
    monkeypatch.setattr(extraction, "SAVE_SECONDS", 0.0)
    stage = evaluate(pixel_settings(batch_size=3))
    for event in stage:
        if isinstance(event, Progress) and event.done >= 13:
            break
    stage.close()
    (pipeline / "out.stats").joinpath("x.sums.9.npz").write_bytes(b"damaged")
    events, result = events_and_result(evaluate(pixel_settings()))
    assert first_done(events) == 10
    assert values(result)["FD[pixels]"] == pytest.approx(values(expected)["FD[pixels]"], rel=1e-9)
    events, result = events_and_result(evaluate(pixel_settings()))
    assert first_done(events) == 20  # of the samples; the reference's statistics are kept
